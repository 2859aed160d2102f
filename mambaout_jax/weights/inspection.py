"""Inspection of weights without loading them."""

import math
from collections import Counter
from collections.abc import Sequence

from mambaout_jax.models import create_model
from mambaout_jax.weights.checkpoint import TorchCheckpoint
from mambaout_jax.weights.errors import WeightsError, naming_source
from mambaout_jax.weights.image_size import sized_axes
from mambaout_jax.weights.key_map import comparable_shapes, expected_shapes, tensor_specs
from mambaout_jax.weights.license import find_license
from mambaout_jax.weights.options import model_args
from mambaout_jax.weights.resolve import resolve_model, resolve_shapes
from mambaout_jax.weights.state_dict import detect_format, differences
from mambaout_jax.words import count, listed

_NUM_SHOWN = 10  # ignored entries, of which a file can have thousands


def inspect_checkpoint(checkpoint: TorchCheckpoint, name: str | None = None) -> dict[str, str]:
    """Return a description of weights.

    Args:
        name: variant to compare with; None to identify the variant.

    Returns:
        Text under "key format", "variant", "parameters", "dtype" and "differences"; under "also fits" if other variants
        have these shapes, or "fits" if only they have; under "entry" and "ignored" if the file has other content, under
        "image size" if parameters depend on it, and under "license" if it is known.

    Raises:
        WeightsError: the family is unknown or not that of the variant, the key format cannot express the variant, or,
            without a name, no variant has exactly these shapes.
        ModelError: the name is unknown.
    """
    with naming_source(checkpoint.origin):
        return _inspect(checkpoint if name is None else checkpoint._replace(config=None), name)


def _inspect(checkpoint: TorchCheckpoint, name: str | None) -> dict[str, str]:
    resolved = resolve_model(checkpoint, name)
    model = create_model(resolved.name, **resolved.options)
    fits = [fit for fit in _fitting_variants(checkpoint) if fit != model.name]
    try:
        key_format = detect_format(model, checkpoint.shapes)
    except WeightsError as error:
        raise WeightsError(f"{error} (they fit {listed(fits) if fits else 'no variant'}, not {model.name})") from error
    expected = expected_shapes(tensor_specs(model.shapes, key_format))
    shapes = comparable_shapes(key_format, checkpoint.shapes)
    options = {"num_classes": model.num_classes, **model_args(model)}
    faults = differences(shapes, expected)
    sized = ", ".join(sized_axes(model, key_format))
    size = "x".join(map(str, model.input_spec.size))
    kinds = Counter(checkpoint.dtypes[key] for key in shapes)
    num_params = sum(map(math.prod, shapes.values()))
    num_buffers = len(checkpoint.shapes) - len(shapes)
    buffers = [f"{count(num_buffers, 'buffer')} of the key format"] if num_buffers else []
    ignored = [*buffers, *_shorten(checkpoint.ignored)]
    return {
        "key format": key_format.name,
        "variant": ", ".join([model.name, *(f"{key} {value}" for key, value in options.items())]),
        **({"fits" if faults else "also fits": ", ".join(fits)} if fits else {}),
        "parameters": f"{num_params:,} in {count(len(shapes), 'tensor')}",
        "dtype": ", ".join(
            f"{kind} ({count(number, 'tensor')})" if len(kinds) > 1 else kind for kind, number in kinds.items()
        ),
        **({"image size": f"{size}; {sized} is resampled when loaded at another img_size"} if sized else {}),
        **({"entry": checkpoint.wrapper} if checkpoint.wrapper else {}),
        **({"license": license} if (license := find_license(checkpoint, model.name)) else {}),
        **({"ignored": ", ".join(ignored)} if ignored else {}),
        "differences": "".join(f"\n  {key} {fault}" for key, fault in faults.items()) or "none",
    }


def _fitting_variants(checkpoint: TorchCheckpoint) -> tuple[str, ...]:
    """Return the variants with the shapes of weights whose options are not stated."""
    if checkpoint.config is not None:
        return ()
    try:
        found = resolve_shapes(checkpoint.shapes)
    except WeightsError:
        return ()
    return found.name, *found.others


def _shorten(ignored: Sequence[str]) -> list[str]:
    """Return descriptions of the first ignored entries and the number of the others."""
    shown = ignored if len(ignored) <= _NUM_SHOWN + 1 else ignored[:_NUM_SHOWN]
    return [*shown, *([f"{len(ignored) - len(shown):,} more"] if len(shown) < len(ignored) else [])]
