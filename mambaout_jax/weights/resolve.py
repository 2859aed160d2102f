"""Which model weights belong to, by the names and shapes of its parameters."""

import itertools
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.models import VARIANTS, MambaOut, VisionTransformer
from mambaout_jax.ops import SCAN_ORDERS
from mambaout_jax.weights.checkpoint import TorchCheckpoint
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.key_maps import TASK_AXES, KeyTable
from mambaout_jax.weights.options import OF_TRAINING, own_options, same
from mambaout_jax.weights.state_dict import Shape, find_table, to_ours

# Options that a variant has another value of for every dataset.
_OF_THE_TASK = ("num_classes", "in_chans", "img_size")


class Identity(NamedTuple):
    """Name what weights belong to.

    Args:
        table: of the dialect that they are in.
        name: for `create_model`.
        options: for `create_model`, as far as they are not the variant's own.
        assumed: what the shapes cannot tell, in words; empty for a registered variant whose shapes no other has.
    """

    table: KeyTable
    name: str
    options: dict[str, Any]
    assumed: str


def identify(checkpoint: TorchCheckpoint, name: str | None = None) -> Identity:
    """Find the model that weights belong to: by their config.json, or else by their shapes.

    Args:
        name: of the variant, where it is known; only the classes and the input's channels are then read from shapes.

    Raises:
        ConvertError: the keys are those of no known family, layers that tell an option are missing, or config.json
            names another variant.
    """
    try:
        return _identify(checkpoint, name)
    except ConvertError as error:
        raise ConvertError(f"{checkpoint.origin}: {error}") from error


def _identify(checkpoint: TorchCheckpoint, name: str | None) -> Identity:
    table = find_table(checkpoint.shapes)
    config = checkpoint.config
    if config is not None:
        if name not in (None, config.architecture):
            raise ConvertError(f"config.json says that this is {config.architecture}; {name} was asked for")
        return Identity(table, config.architecture, {**config.options, **config.preparation}, "")
    shapes = {ours: shape for key, shape in checkpoint.shapes.items() if (ours := to_ours(table, key)) is not None}
    task = _task_options(table, shapes)
    if name is not None:
        return Identity(table, name, task, "")
    options = {**_read_options(table, shapes), **table.fixed, **task}
    name, changes = _nearest(table.family, options)
    return Identity(table, name, changes, _assumptions(name, options, changes))


def _task_options(table: KeyTable, shapes: Mapping[str, Shape]) -> dict[str, int]:
    places = TASK_AXES[table.family].items()
    options = {option: shapes[layer][axis] for option, (layer, axis) in places if len(shapes.get(layer, ())) > axis}
    return {**options, **_IMAGE_SIZES.get(table.family, lambda shapes: {})(shapes)}


def _assumptions(name: str, options: dict[str, Any], changes: dict[str, Any]) -> str:
    """Say what no shape tells: what the nearest variant gave, or which other variants have these shapes."""
    unread = {
        key: value
        for key, value in own_options(name).items()
        if key not in options and key not in (*OF_TRAINING, *_OF_THE_TASK)
    }
    if not changes.keys() - set(_OF_THE_TASK):
        twins = [other for other in _variants_of(VARIANTS[name].family) if own_options(other) == own_options(name)]
        twins.remove(name)
        return f"{' and '.join(twins)} has the same shapes; name it by --model if it is meant" if twins else ""
    if not unread:
        return ""
    told = " and ".join(f"{key} {value!r}" for key, value in unread.items())
    verb = "is" if len(unread) == 1 else "are"
    guess = _GUESSES.get(VARIANTS[name].family, "").format(**options)
    return f"no variant has these sizes; {told} of {name}, the nearest, {verb} assumed{guess}"


def _read_options(table: KeyTable, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    if table.family not in _READERS:
        raise ConvertError(f"the shapes of a {table.family.__name__} do not tell its variant; name it by --model")
    try:
        return _READERS[table.family](shapes)
    except KeyError as error:
        fault = f"{error} is missing"
    except (ValueError, IndexError, ZeroDivisionError):
        fault = "its layers have shapes that do not go together"
    raise ConvertError(
        f"the weights are those of a {table.family.__name__}, but {fault}; compare them with a variant by convert "
        "inspect FILE --model NAME"
    )


def _variants_of(family: type) -> list[str]:
    return [name for name, variant in VARIANTS.items() if variant.family is family]


def _nearest(family: type, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Choose the variant that the fewest options differ from, and give those."""
    changes = {}
    for name in _variants_of(family):
        own = own_options(name)
        changes[name] = {key: value for key, value in options.items() if not same(key, value, own[key])}
    name = min(changes, key=lambda name: len(changes[name]))
    return name, changes[name]


def _mambaout_options(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    depths = tuple(_length(shapes, f"stages.{stage}.blocks.") for stage in range(_length(shapes, "stages.")))
    first = [f"stages.{stage}.blocks.0" for stage in range(len(depths))]
    dims, hidden = zip(*(shapes[f"{block}.fc2.weight"] for block in first), strict=True)
    convolved = [shapes[f"{block}.conv.weight"][0] for block in first]
    options = {
        "depths": depths,
        "dims": dims,
        "kernel_size": shapes[f"{first[0]}.conv.weight"][-1],
        "expansion_ratio": _ratio(hidden, dims, usual=8 / 3),
        "conv_ratio": _ratio(convolved, dims, usual=1.0),
        "stem_mid_norm": "stem.norm1.weight" in shapes,
        "ls_init_value": 1e-6 if f"{first[0]}.ls.gamma" in shapes else None,
        "head_fn": "default" if "head.pre_logits.norm.weight" in shapes else "norm_mlp",
        **_token_mixer(shapes, f"{first[0]}.ssm."),
    }
    # Norm and convolution have the same shapes in either order where a stage is as wide as the one before it.
    if widened := [stage for stage in range(1, len(dims)) if dims[stage] != dims[stage - 1]]:
        after = shapes[f"stages.{widened[0]}.downsample.norm.weight"] == (dims[widened[0]],)
        options["downsample"] = "conv" if after else "conv_nf"
    elif len(dims) == 1:
        options["downsample"] = "conv"  # of which there is none
    return options


def _token_mixer(shapes: Iterable[str], prefix: str) -> dict[str, str]:
    """Tell from a block's state space models, one for each direction, whether it has any and how they read a map."""
    if not any(name.startswith(prefix) for name in shapes):
        return {"token_mixer": "conv", "scan_order": "causal"}
    directions = _length(shapes, prefix)
    orders = [order for order in SCAN_ORDERS if len(SCAN_ORDERS[order]) == directions]
    if not orders:
        raise ValueError(f"{directions} directions")
    return {"token_mixer": "conv_ssm", "scan_order": orders[0]}


def _vit_options(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    dim, hidden = shapes["patch_embed.proj.weight"][0], shapes["blocks.0.mlp.fc1.weight"][0]
    class_token, norm_first = "cls_token" in shapes, "norm.weight" in shapes
    token = class_token and norm_first  # of what has these parameters too, a mean of normalised patches is rare
    return {
        "patch_size": shapes["patch_embed.proj.weight"][-1],
        "embed_dim": dim,
        "depth": _length(shapes, "blocks."),
        "num_heads": next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0),
        "mlp_ratio": _ratio([hidden], [dim], usual=4.0),
        "class_token": class_token,
        "global_pool": "token" if token else "avg",
        "fc_norm": False if norm_first and not token else None,
    }


def _vit_image_size(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    """Tell the side of square images from the number of tokens; that of others no shape tells."""
    match shapes.get("pos_embed"), shapes.get("patch_embed.proj.weight"):
        case (_, length, _), (_, _, _, patch_size):
            num_patches = length - ("cls_token" in shapes)
            side = math.isqrt(max(num_patches, 0))
            if side and side**2 == num_patches:
                return {"img_size": (side * patch_size,) * 2}
    return {}


def _length(shapes: Iterable[str], prefix: str) -> int:
    """Count the members of a list, which their places in names tell."""
    places = {int(name.removeprefix(prefix).partition(".")[0]) for name in shapes if name.startswith(prefix)}
    length = next(place for place in itertools.count() if place not in places)
    if length != max(len(places), 1):
        raise KeyError(f"{prefix}{length}")
    return length


def _ratio(widths: Iterable[int], dims: Iterable[int], usual: float) -> float:
    """Find r with int(r * dim) == width for every pair: the usual one, or else the simplest fraction."""
    pairs = list(zip(widths, dims, strict=True))
    least = max(Fraction(width, dim) for width, dim in pairs)
    # The least float that reaches every width is always enough; int(1 / 49 * 49) is 0.
    last = float(least)
    while any(int(last * dim) < width for width, dim in pairs):
        last = math.nextafter(last, math.inf)
    simple = (math.ceil(least * denominator) / denominator for denominator in range(1, 100))
    for ratio in (usual, *simple, last):
        if all(int(ratio * dim) == width for width, dim in pairs):
            return ratio
    raise ValueError(f"no ratio makes {[width for width, _ in pairs]} of {[dim for _, dim in pairs]}")


# How the options of a family are read from the shapes that its parameters have in PyTorch, under our names.
_READERS = MappingProxyType({MambaOut: _mambaout_options, VisionTransformer: _vit_options})
# How the size of the images is read, of a family that has it as an option.
_IMAGE_SIZES = MappingProxyType({VisionTransformer: _vit_image_size})
# What a reader takes for granted, in words.
_GUESSES = MappingProxyType({VisionTransformer: ", and num_heads {num_heads} after their 64 channels a head"})
