"""Weights that a run starts from, or that are evaluated: of another run, or of a PyTorch program."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from mambaout_jax.models import Model, create_model
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import is_workdir, load_run
from mambaout_jax.weights import differences, from_checkpoint, identify, other_options, read_checkpoint

LeafPath = tuple[str | int, ...]


class Pretrained(NamedTuple):
    """Hold weights of a model that differs from the wanted one in the classifier at most.

    Args:
        labels: what the outputs mean, as far as it is known.
        description: what the weights are, in words.
    """

    variables: dict[str, Any]
    labels: Mapping[str, Any]
    description: str


def load_pretrained_for(source: epath.PathLike, model: Model) -> Pretrained:
    """Load weights for a model; the input size may be another than the one that they were trained at.

    Args:
        source: the workdir of a run, whose averaged weights are taken where they were kept, or what
            `convert.from_torch` reads.

    Raises:
        RunError, ConvertError: it cannot be read, or parameters outside the classifier are missing, left over or of
            another shape.
    """
    if not is_workdir(source):
        return _load_torch(source, model)
    run = load_run(source)
    if faults := [fault for path, fault in _differences(run.variables, model).items() if not _in_head(path, model)]:
        raise RunError(
            f"the weights in {source} are those of {run.model.name} with other options than config.model: "
            f"{'; '.join(faults)}; the same model is expected"
        )
    averaged = "averaged " if run.weights == "ema" else ""
    origin = f"the {averaged}weights of step {run.step} in {source}"
    return Pretrained(run.variables, run.labels, origin)


def _load_torch(source: epath.PathLike, model: Model) -> Pretrained:
    checkpoint = read_checkpoint(source)
    identity = identify(checkpoint, name=None if checkpoint.config else model.name)
    num_classes = identity.options.get("num_classes", model.num_classes)
    theirs = create_model(identity.name, **identity.options) if checkpoint.config else model
    if keys := other_options(theirs.options, model.options):
        faults = [f"{key} {model.options.get(key)!r}, not {theirs.options.get(key)!r}" for key in keys]
        raise RunError(f"the weights in {source} are those of {theirs.name}; config.model has {'; '.join(faults)}")
    same_but_classes = create_model(model.name, **{**model.options, "num_classes": num_classes})
    variables = from_checkpoint(same_but_classes, checkpoint)
    names = checkpoint.config.class_names if checkpoint.config else None
    labels = {"num_classes": num_classes, "class_names": names}
    origin = f"the weights in {source}{_other_preparation(theirs, model)}"
    return Pretrained(variables, labels, origin)


def _other_preparation(theirs: Model, ours: Model) -> str:
    """Tell what else their images look like; size and crop are the config's to choose."""
    pairs = [(field, getattr(theirs.input_spec, field), getattr(ours.input_spec, field)) for field in ("mean", "std")]
    told = [f"{field} {tuple(wanted)}, not {given}" for field, wanted, given in pairs if tuple(wanted) != tuple(given)]
    return f" (which were trained on images of {' and '.join(told)})" if told else ""


def merge_pretrained(
    pretrained: Pretrained, model: Model, fresh: dict[str, Any], *, init_head: str, labels: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Take the weights that a run starts from.

    Args:
        fresh: the model's variables as drawn, which the classifier comes from where it is new.
        init_head: "keep" or "new", for the classifier.
        labels: of the dataset that the model is for.

    Returns:
        Variables on the host, and what they are in a sentence.

    Raises:
        RunError: the classifier is to be kept, and is one for another number of classes.
    """
    faults = _differences(pretrained.variables, model)
    if faults and init_head == "keep":
        raise RunError(
            f"the last layer of {pretrained.description} does not fit the dataset: "
            f"{'; '.join(faults.values())}; set config.init_head=new to start with a fresh one"
        )
    theirs = _flatten(pretrained.variables)
    taken = [
        leaf if init_head == "new" and _in_head(path, model) else theirs[path] for path, leaf in _flatten(fresh).items()
    ]
    variables = jax.tree.unflatten(jax.tree.structure(fresh), jax.device_get(taken))
    if init_head == "new":
        classifier = "a new classifier"
    elif all(value in (None, labels.get(name, value)) for name, value in pretrained.labels.items()):
        classifier = "their classifier"
    else:
        classifier = "their classifier, which was trained for classes of other names"
    return variables, f"starts from {pretrained.description}, with {classifier}"


def _in_head(path: LeafPath, model: Model) -> bool:
    return path[1 : 1 + len(model.classifier)] == model.classifier


def _flatten(variables: dict[str, Any]) -> dict[LeafPath, Any]:
    """Give leaves by path, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree.flatten_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def _differences(variables: dict[str, Any], model: Model) -> dict[LeafPath, str]:
    theirs, ours = _flatten(variables), _flatten(jax.eval_shape(model.init, jax.random.key(0)))
    names = {".".join(map(str, path[1:])): path for path in theirs.keys() | ours.keys()}
    faults = differences(_shapes(theirs), _shapes(ours))
    return {names[name]: f"{name} {fault}" for name, fault in faults.items()}


def _shapes(leaves: Mapping[LeafPath, Any]) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path[1:])): tuple(leaf.shape) for path, leaf in leaves.items()}
