"""Start a run from the weights of another."""

from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from mambaout_jax.models import Model
from mambaout_jax.train.errors import RunError
from mambaout_jax.train.workdir import load_run

Path = tuple[str | int, ...]


def load_pretrained(
    path: epath.PathLike, model: Model, fresh: dict[str, Any], *, init_head: str, class_names: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Take the weights of the newest checkpoint of a workdir: averaged ones where they were kept.

    The input size may be another than the one that they were trained at; all else has to be the same model.

    Args:
        fresh: the model's variables as drawn, which the classifier comes from where it is new.
        init_head: "keep" or "new", for the classifier.
        class_names: of the dataset that the model is for.

    Returns:
        Variables on the host, and what they are in a sentence.

    Raises:
        RunError: the workdir holds no readable run, or parameters are missing, left over or of another shape.
    """
    run = load_run(path)
    theirs, ours = _flatten(run.variables), _flatten(fresh)
    head = {name for name in theirs.keys() | ours.keys() if name[1 : 1 + len(model.classifier)] == model.classifier}
    faults = _differences(theirs, ours)
    if any(name not in head for name in faults):
        told = [fault for name, fault in faults.items() if name not in head or init_head == "keep"]
        raise RunError(
            f"the weights in {path} are those of {run.model.name} with other options than config.model: "
            f"{'; '.join(told)}; the same model is expected"
        )
    if faults and init_head == "keep":
        raise RunError(
            f"the classifier in {path} does not fit {len(class_names)} classes: {'; '.join(faults.values())}; set "
            "config.init_head=new to start with a fresh one"
        )
    taken = {name: leaf if name in head and init_head == "new" else theirs[name] for name, leaf in ours.items()}
    variables = jax.tree.unflatten(jax.tree.structure(fresh), jax.device_get(list(taken.values())))
    averaged = "averaged " if run.weights == "ema" else ""
    if init_head == "new":
        classifier = "a new classifier"
    elif tuple(class_names) == tuple(run.class_names):
        classifier = "their classifier"
    else:
        classifier = "their classifier, which was trained for classes of other names"
    return variables, f"starts from the {averaged}weights of step {run.step} in {path}, with {classifier}"


def _flatten(variables: dict[str, Any]) -> dict[Path, jax.Array]:
    """Give leaves by path, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree.flatten_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def _differences(theirs: dict[Path, jax.Array], ours: dict[Path, jax.Array]) -> dict[Path, str]:
    faults = {}
    for name in sorted(theirs.keys() | ours.keys(), key=str):
        dotted = ".".join(map(str, name[1:]))
        if name not in theirs:
            faults[name] = f"{dotted} is missing"
        elif name not in ours:
            faults[name] = f"{dotted} is left over"
        elif theirs[name].shape != ours[name].shape:
            faults[name] = f"{dotted} has shape {theirs[name].shape} where {ours[name].shape} is expected"
    return faults
