"""Tell what weights are, without loading them."""

import math
from collections import Counter

from mambaout_jax.models import Model, create_model
from mambaout_jax.weights.checkpoint import TorchCheckpoint
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.options import model_args
from mambaout_jax.weights.resolve import identify
from mambaout_jax.weights.state_dict import differences, expected_shapes, find_table, get_table


def inspect_checkpoint(checkpoint: TorchCheckpoint, name: str | None = None) -> dict[str, str]:
    """Describe weights.

    Args:
        name: of the variant to compare with; None for the one that they are of.

    Returns:
        dialect, variant, parameters, dtype, differences, and entry for a file that holds more; in words.

    Raises:
        ConvertError: they are of no known family, in a dialect that cannot express the variant, or, without a name,
            too much is missing to tell which it is.
        ModelError: the name is unknown.
    """
    model = _model(checkpoint, name)
    table = get_table(model, find_table(checkpoint.shapes).dialect)
    options = {"num_classes": model.num_classes, **model_args(model)}
    faults = differences(checkpoint.shapes, expected_shapes(model, table))
    kinds = Counter(checkpoint.dtypes.values())
    return {
        "dialect": table.dialect,
        "variant": ", ".join([model.name, *(f"{key} {value}" for key, value in options.items())]),
        "parameters": f"{sum(map(math.prod, checkpoint.shapes.values())):,} in {len(checkpoint.shapes)} tensors",
        "dtype": ", ".join(f"{kind} ({count} tensors)" if len(kinds) > 1 else kind for kind, count in kinds.items()),
        **({"entry": checkpoint.wrapper} if checkpoint.wrapper else {}),
        "differences": "".join(f"\n  {key} {fault}" for key, fault in faults.items()) or "none",
    }


def _model(checkpoint: TorchCheckpoint, name: str | None) -> Model:
    if name is None:
        identity = identify(checkpoint)
        return create_model(identity.name, **identity.options)
    try:
        options = identify(checkpoint._replace(config=None), name).options
    except ConvertError:
        options = {}  # what tells the classes is missing: that is one of the differences
    return create_model(name, **options)
