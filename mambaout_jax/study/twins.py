"""The twins of a study: models that differ in how they mix tokens, and in as little else as can be."""

import bisect
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mambaout_jax.models import Model, create_model
from mambaout_jax.models.macs import count_macs
from mambaout_jax.run.errors import RunError

TOLERANCE = 0.02
NUM_HEADS = 4

Options = dict[str, Any]
Neighbours = tuple[Options, Options]


class Mixer(NamedTuple):
    """Describe a way to mix tokens.

    Args:
        family: "mambaout", or "vit" for a column of equal blocks in the place of the stages.
        has_ssm: whether it is an SSM that is asked about.
        options: of the model.
    """

    title: str
    family: str
    has_ssm: bool
    options: Mapping[str, Any]


def _mixer(title: str, family: str, *, has_ssm: bool = False, **options: Any) -> Mixer:
    return Mixer(title, family, has_ssm, MappingProxyType(options))


# The first one is what all others are held against.
MIXERS: Mapping[str, Mixer] = MappingProxyType(
    {
        "conv": _mixer("convolution alone", "mambaout", token_mixer="conv", scan_order="causal"),
        "ssm-causal": _mixer("SSM (causal)", "mambaout", has_ssm=True, token_mixer="conv_ssm", scan_order="causal"),
        "ssm-bidirectional": _mixer(
            "SSM (bidirectional)", "mambaout", has_ssm=True, token_mixer="conv_ssm", scan_order="bidirectional"
        ),
        "ssm-cross": _mixer("SSM (cross)", "mambaout", has_ssm=True, token_mixer="conv_ssm", scan_order="cross"),
        "vit-full": _mixer("ViT (full)", "vit", attention="full"),
        "vit-causal": _mixer("ViT (causal)", "vit", attention="causal"),
    }
)
# What each comparison is called, and of which models it is one.
COMPARISONS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "removed": ("The SSM removed, all widths as they were", tuple(key for key in MIXERS if MIXERS[key].has_ssm)),
        "matched": ("Equally many parameters", tuple(MIXERS)[1:]),
    }
)

# Options of a MambaOut that a ViT takes as well.
_SHARED = ("in_chans", "drop_path_rate", "drop_rate", "dtype", "scan_blocks", "remat")


class Twin(NamedTuple):
    """Hold a model that takes part.

    Args:
        name: of its runs: "conv", which is in every comparison, or the comparison and the mixer.
        comparisons: that it is in.
        model: the section of the config.
        macs: multiply-adds of one image.
    """

    name: str
    mixer: str
    comparisons: tuple[str, ...]
    model: Options
    params: int
    macs: int


def design_twins(model: Mapping[str, Any], num_classes: int) -> list[Twin]:
    """Build what a study compares, the model without an SSM first.

    Args:
        model: the section of the config; its widths are those of the model without an SSM, and of those that it is
            simply added to. The others' are such that they have as many parameters.

    Raises:
        RunError: it is no MambaOut, or the parameters of a twin cannot be brought to within 2 %.
        ModelError: an option does not fit.
    """
    given = {key: value for key, value in model.items() if value is not None}
    if "token_mixer" not in create_model(given["name"]).options:
        raise RunError(
            f"config.model.name is {given['name']!r}; a study takes the SSM out of a MambaOut, so that one of "
            "mambaout_* is expected"
        )
    own = create_model(num_classes=num_classes, **given)
    print(f"looking for widths at which the twins of {own.name} have as many parameters", file=sys.stderr)
    baseline, *_ = MIXERS
    twins = [_make_twin(baseline, baseline, tuple(COMPARISONS), given | MIXERS[baseline].options, num_classes)]
    for comparison, (_, mixers) in COMPARISONS.items():
        for mixer in mixers:
            if comparison == "removed":
                options = given | MIXERS[mixer].options
            else:
                options = _match(mixer, given, own, num_classes, twins[0].params)
            twins.append(_make_twin(f"{comparison}-{mixer}", mixer, (comparison,), options, num_classes))
    return twins


def _make_twin(name: str, mixer: str, comparisons: tuple[str, ...], options: Options, num_classes: int) -> Twin:
    model = create_model(num_classes=num_classes, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), jnp.float32)
    macs = count_macs(model.apply, variables, image)
    return Twin(name, mixer, comparisons, options, model.num_params, macs)


def _match(mixer: str, given: Options, own: Model, num_classes: int, target: int) -> Options:
    def count(options: Options) -> int:
        return create_model(num_classes=num_classes, **options).num_params

    if MIXERS[mixer].family == "mambaout":
        near = _match_stages(given | MIXERS[mixer].options, own.options["dims"], count, target)
    else:
        near = _match_column(_column(given, own) | MIXERS[mixer].options, count, target)
    counted = [(options, count(options)) for options in near]
    nearest, params = min(counted, key=lambda found: abs(found[1] - target))
    if abs(params - target) > TOLERANCE * target:
        raise RunError(
            f"the twin {mixer} has {params:,} parameters at its nearest widths where the model without an SSM "
            f"has {target:,}; larger config.model.dims are expected, of which widths can be told finer than 2 %"
        )
    return nearest


def _match_stages(options: Options, dims: tuple[int, ...], count: Callable[[Options], int], target: int) -> Neighbours:
    def scale(thousandths: int) -> Options:
        return options | {"dims": tuple(max(2, round(dim * thousandths / 1000)) for dim in dims)}

    return _around(range(100, 2001), scale, count, target)


def _match_column(options: Options, count: Callable[[Options], int], target: int) -> Neighbours:
    """Take the widest column that has no more parameters, and give what is left to the hidden layers of its MLPs."""

    def widen(heads_width: int) -> Options:
        return options | {"embed_dim": NUM_HEADS * heads_width}

    options, _ = _around(range(1, 1025), widen, count, target)
    width = options["embed_dim"]

    def fill(hidden: int) -> Options:
        return options | {"mlp_ratio": hidden / width}

    return _around(range(1, 8 * width), fill, count, target)


def _column(given: Options, own: Model) -> Options:
    """Give a ViT as many tokens as the first stage has, as many blocks as all stages, and the same images."""
    return {
        "name": "vit_tiny_patch16_224",
        "img_size": own.input_spec.size,
        "patch_size": own.feature_info[0].stride,
        "depth": sum(own.options["depths"]),
        "num_heads": NUM_HEADS,
        "class_token": False,
        "global_pool": "avg",
        **{key: given[key] for key in _SHARED if key in given},
        **{key: getattr(own.input_spec, key) for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")},
    }


def _around(values: range, make: Callable[[int], Options], count: Callable[[Options], int], target: int) -> Neighbours:
    """Find the two values between which the parameters, which rise with it, pass the target."""
    above = bisect.bisect_right(values, target, key=lambda value: count(make(value)))
    return make(values[max(above - 1, 0)]), make(values[min(above, len(values) - 1)])
