"""Inspection of weights without loading them."""

import math
from collections import Counter

from mambaout_jax.models import Model, create_model
from mambaout_jax.weights.checkpoint import TorchCheckpoint
from mambaout_jax.weights.image_size import sized_axes
from mambaout_jax.weights.key_map import comparable_shapes, expected_shapes, matching_formats, tensor_specs
from mambaout_jax.weights.licence import find_licence
from mambaout_jax.weights.options import model_args
from mambaout_jax.weights.resolve import resolve_model
from mambaout_jax.weights.state_dict import differences, get_format
from mambaout_jax.words import count


def inspect_checkpoint(checkpoint: TorchCheckpoint, name: str | None = None) -> dict[str, str]:
    """Return a description of weights.

    Args:
        name: variant to compare with; None to identify the variant.

    Returns:
        Text under "key format", "variant", "parameters", "dtype" and "differences", under "entry" and "ignored" if
        the file has other content, under "image size" if parameters depend on it, and under "licence" if it is known.

    Raises:
        WeightsError: the family is unknown, the key format cannot express the variant, or, without a name, no variant
            has exactly these shapes.
        ModelError: the name is unknown.
    """
    model = _build_model(checkpoint, name)
    _, key_format = matching_formats(checkpoint.shapes, prefer=model.family)[0]
    own_format = get_format(model, key_format.name)
    expected = expected_shapes(tensor_specs(model.shapes, own_format))
    options = {"num_classes": model.num_classes, **model_args(model)}
    faults = differences(comparable_shapes(key_format, checkpoint.shapes), expected)
    sized = ", ".join(sized_axes(model, own_format))
    size = "x".join(map(str, model.input_spec.size))
    kinds = Counter(checkpoint.dtypes.values())
    num_params = sum(map(math.prod, checkpoint.shapes.values()))
    return {
        "key format": key_format.name,
        "variant": ", ".join([model.name, *(f"{key} {value}" for key, value in options.items())]),
        "parameters": f"{num_params:,} in {count(len(checkpoint.shapes), 'tensor')}",
        "dtype": ", ".join(
            f"{kind} ({count(number, 'tensor')})" if len(kinds) > 1 else kind for kind, number in kinds.items()
        ),
        **({"image size": f"{size}; {sized} is resampled when loaded at another img_size"} if sized else {}),
        **({"entry": checkpoint.wrapper} if checkpoint.wrapper else {}),
        **({"licence": licence} if (licence := find_licence(checkpoint, model.name)) else {}),
        **({"ignored": ", ".join(checkpoint.ignored)} if checkpoint.ignored else {}),
        "differences": "".join(f"\n  {key} {fault}" for key, fault in faults.items()) or "none",
    }


def _build_model(checkpoint: TorchCheckpoint, name: str | None) -> Model:
    if name is not None:
        checkpoint = checkpoint._replace(config=None)
    resolved = resolve_model(checkpoint, name)
    return create_model(resolved.name, **resolved.options)
