"""The named variants: options, input preparation and published accuracy of each."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flax import nnx

from mambaout_jax.models.api import MIN_SIZE, InputSpec, Model
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.mambaout.model import MambaOut
from mambaout_jax.models.vit.model import VisionTransformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Variant:
    """Describe a named model.

    Args:
        family: the module class; its keyword arguments are the model's options.
        options: what the variant sets of them.
        size: side of the training images, in pixels.
        mean, std: of the training images, for each of R, G, B in [0, 1].
        crop_pct: share of the resized image that the evaluation crop keeps.
        top1: published ImageNet-1k top-1 in percent, by side of the evaluation image.
    """

    family: type[nnx.Module]
    options: Mapping[str, Any]
    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0
    top1: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


_NARROW = {"dims": (48, 96, 192, 288)}
_MIDDLE = {"dims": (96, 192, 384, 576)}
_WIDE = {"dims": (128, 256, 512, 768)}
_MAMBA = {"token_mixer": "conv_ssm", "scan_order": "causal"}
_VIT_TINY = {"embed_dim": 192, "num_heads": 3}
_VIT_SMALL = {"embed_dim": 384, "num_heads": 6}
_VIT_BASE = {"embed_dim": 768, "num_heads": 12}
# What Google's own weights, which go by these names, were trained on.
_VIT_INPUT = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9}
_RW = {"stem_mid_norm": False, "downsample": "conv_nf", "ls_init_value": 1e-6, "head_fn": "norm_mlp"}

# Options and accuracies: timm 1.0.31, mambaout.py and results-imagenet.csv.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "mambaout_femto": Variant(MambaOut, {"depths": (3, 3, 9, 3), **_NARROW}, top1={224: 78.880, 288: 79.912}),
        "mambaout_kobe": Variant(MambaOut, {"depths": (3, 3, 15, 3), **_NARROW}, top1={224: 79.986, 288: 81.064}),
        "mambaout_tiny": Variant(MambaOut, {"depths": (3, 3, 9, 3), **_MIDDLE}, top1={224: 82.742, 288: 83.452}),
        "mambaout_small": Variant(MambaOut, {"depths": (3, 4, 27, 3), **_MIDDLE}, top1={224: 84.094, 288: 84.512}),
        "mambaout_base": Variant(MambaOut, {"depths": (3, 4, 27, 3), **_WIDE}, top1={224: 84.194, 288: 84.730}),
        "mamba_femto": Variant(MambaOut, {"depths": (3, 3, 9, 3), **_NARROW, **_MAMBA}),
        "mamba_kobe": Variant(MambaOut, {"depths": (3, 3, 15, 3), **_NARROW, **_MAMBA}),
        "mamba_tiny": Variant(MambaOut, {"depths": (3, 3, 9, 3), **_MIDDLE, **_MAMBA}),
        "mamba_small": Variant(MambaOut, {"depths": (3, 4, 27, 3), **_MIDDLE, **_MAMBA}),
        "mamba_base": Variant(MambaOut, {"depths": (3, 4, 27, 3), **_WIDE, **_MAMBA}),
        "mambaout_small_rw": Variant(
            MambaOut, {"depths": (3, 4, 27, 3), **_MIDDLE, **_RW}, top1={224: 84.040, 288: 84.604}
        ),
        "mambaout_base_short_rw": Variant(
            MambaOut,
            {"depths": (3, 3, 25, 3), **_WIDE, **_RW, "expansion_ratio": 3.0, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.364, 288: 84.842},
        ),
        "mambaout_base_tall_rw": Variant(
            MambaOut,
            {"depths": (3, 4, 30, 3), **_WIDE, **_RW, "expansion_ratio": 2.5, "conv_ratio": 1.25},
            crop_pct=0.95,
            top1={224: 84.436, 288: 84.988},
        ),
        "mambaout_base_wide_rw": Variant(
            MambaOut,
            {
                "depths": (3, 4, 27, 3),
                **_WIDE,
                **_RW,
                "expansion_ratio": 3.0,
                "conv_ratio": 1.5,
                "act_layer": "silu",
            },
            crop_pct=0.95,
            top1={224: 84.448, 288: 84.966},
        ),
        "mambaout_base_plus_rw": Variant(
            MambaOut,
            {
                "depths": (3, 4, 30, 3),
                **_WIDE,
                **_RW,
                "expansion_ratio": 3.0,
                "conv_ratio": 1.5,
                "act_layer": "silu",
            },
            top1={224: 86.642, 288: 86.916},
        ),
        "test_mambaout": Variant(
            MambaOut,
            {
                "depths": (1, 1, 3, 1),
                "dims": (16, 32, 48, 64),
                **_RW,
                "expansion_ratio": 3.0,
                "act_layer": "silu",
            },
            size=160,
        ),
        # timm 1.0.31, deit.py and vision_transformer.py. Weights without a name are taken for the first of two variants
        # that have the same shapes: DeiT's are published as such files.
        "deit_tiny_patch16_224": Variant(VisionTransformer, _VIT_TINY, crop_pct=0.9, top1={224: 72.2}),
        "deit_small_patch16_224": Variant(VisionTransformer, _VIT_SMALL, crop_pct=0.9, top1={224: 79.8}),
        "deit_base_patch16_224": Variant(VisionTransformer, _VIT_BASE, crop_pct=0.9, top1={224: 81.8}),
        "vit_tiny_patch16_224": Variant(VisionTransformer, _VIT_TINY, **_VIT_INPUT),
        "vit_small_patch16_224": Variant(VisionTransformer, _VIT_SMALL, **_VIT_INPUT),
        "vit_base_patch16_224": Variant(VisionTransformer, _VIT_BASE, **_VIT_INPUT),
    }
)


# What a model's own way of preparing images may be changed in, beside the size.
_PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


def list_models() -> list[str]:
    """List the names that `create_model` takes, sorted."""
    return sorted(VARIANTS)


def create_model(name: str, *, img_size: int | tuple[int, int] | None = None, **options: Any) -> Model:
    """Build a variant by name.

    Args:
        name: one of `list_models()`.
        img_size: side or (height, width) of the images, 32 px and up; None for the variant's own.
        options: what to change of the variant, by the names that its family's class takes, and of its `input_spec`:
            mean, std, crop_pct, crop_mode, interpolation.

    Raises:
        ModelError: the name or an option is unknown (the nearest known one is named), or a value is out of range.
    """
    variant = _named(name, VARIANTS, "model")
    defaults = {
        option: parameter.default
        for option, parameter in inspect.signature(variant.family.__init__).parameters.items()
        if option != "self"
    }
    for option in options:
        _named(option, dict.fromkeys((*defaults, *_PREPARATION)), f"option of {name}")
    preparation = {option: options.pop(option) for option in _PREPARATION if option in options}
    options = {**defaults, **variant.options, **options}
    spec = _input_spec(variant, img_size, options["in_chans"], preparation)
    if "img_size" in defaults:  # a family whose parameters depend on it
        options["img_size"] = spec.size
    return Model(
        variant.family(**options),
        name=name,
        options=options,
        input_spec=spec,
    )


def _input_spec(
    variant: Variant, img_size: int | tuple[int, int] | None, in_chans: int, preparation: Mapping[str, Any]
) -> InputSpec:
    given = variant.size if img_size is None else img_size
    size = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(size) != 2 or not all(isinstance(side, int) and side >= MIN_SIZE for side in size):
        raise ModelError(f"img_size is {img_size}; a side or (height, width) of at least {MIN_SIZE} px is expected")
    for statistic in ("mean", "std"):
        values = preparation.get(statistic, (0.5,) * in_chans)
        if len(values) != in_chans:
            raise ModelError(f"{statistic} is {values}; a number for each of the {in_chans} channels is expected")
    rgb = in_chans == 3
    spec = InputSpec(
        mean=variant.mean if rgb else (0.5,) * in_chans,
        std=variant.std if rgb else (0.5,) * in_chans,
        size=size,
        crop_pct=variant.crop_pct,
        crop_mode="center",
        interpolation="bicubic",
    )
    return spec._replace(**preparation)


def _named(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name in known:
        return known[name]
    near = "".join(f"; did you mean {other!r}?" for other in difflib.get_close_matches(name, known, n=1))
    raise ModelError(f"{name!r} is not a known {what}{near or '.'} Known are {', '.join(sorted(known))}")
