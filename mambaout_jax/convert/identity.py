"""Which model weights belong to, by the names and shapes of its parameters."""

import itertools
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.convert.checkpoint import TorchCheckpoint
from mambaout_jax.convert.dialects import TASK_AXES, KeyTable
from mambaout_jax.convert.errors import ConvertError
from mambaout_jax.convert.options import OF_TRAINING, own_options, same
from mambaout_jax.convert.state_dict import Shape, find_table, to_ours
from mambaout_jax.models import VARIANTS, MambaOut

# Options that a variant has another value of for every dataset.
_OF_THE_TASK = ("num_classes", "in_chans")


class Identity(NamedTuple):
    """Name what weights belong to.

    Args:
        table: of the dialect that they are in.
        name: for `create_model`.
        options: for `create_model`, as far as they are not the variant's own.
        assumed: what the shapes cannot tell, in words; empty for a registered variant.
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
    return {option: shapes[layer][axis] for option, (layer, axis) in places if len(shapes.get(layer, ())) > axis}


def _assumptions(name: str, options: dict[str, Any], changes: dict[str, Any]) -> str:
    """Say what was taken from the nearest variant because no shape tells it and no variant has these shapes."""
    unread = {
        key: value
        for key, value in own_options(name).items()
        if key not in options and key not in (*OF_TRAINING, *_OF_THE_TASK)
    }
    if not unread or not changes.keys() - set(_OF_THE_TASK):
        return ""
    told = " and ".join(f"{key} {value!r}" for key, value in unread.items())
    verb = "is" if len(unread) == 1 else "are"
    return f"no variant has these sizes; {told} of {name}, the nearest, {verb} assumed"


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


def _nearest(family: type, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Choose the variant that the fewest options differ from, and give those."""
    changes = {}
    for name, variant in VARIANTS.items():
        if variant.family is family:
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
    }
    # Norm and convolution have the same shapes in either order where a stage is as wide as the one before it.
    if widened := [stage for stage in range(1, len(dims)) if dims[stage] != dims[stage - 1]]:
        after = shapes[f"stages.{widened[0]}.downsample.norm.weight"] == (dims[widened[0]],)
        options["downsample"] = "conv" if after else "conv_nf"
    elif len(dims) == 1:
        options["downsample"] = "conv"  # of which there is none
    return options


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
_READERS = MappingProxyType({MambaOut: _mambaout_options})
