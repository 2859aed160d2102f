"""Pretrained weights from another run or from PyTorch, to initialize a run or to evaluate."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from mambaout_jax.data.names import normalize_name
from mambaout_jax.models import Model, backbone_of, create_model, find_family
from mambaout_jax.models.api import ParamPath
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import is_workdir, load_config, open_workdir, restore_run
from mambaout_jax.tasks.api import Task
from mambaout_jax.weights import (
    adapt_first_layer,
    differences,
    find_license,
    from_checkpoint,
    other_options,
    read_checkpoint,
    resample_variables,
    resolve_model,
)
from mambaout_jax.weights.key_map import matching_formats
from mambaout_jax.words import count, listed


class Pretrained(NamedTuple):
    """Pretrained weights, which match the model to train up to the last layer.

    Args:
        model: the pretrained model.
        labels: the labels of its outputs; empty if unknown.
        description: the origin of the weights, for messages.
        license: name of their license; None if it is unknown.
        has_head: whether they have all layers but the last; False for those of a backbone.
    """

    variables: dict[str, Any]
    model: Model
    labels: Mapping[str, Any]
    description: str
    license: str | None
    has_head: bool = True


def load_pretrained_for(source: epath.PathLike, model: Model, *, head_task: type[Task] | None = None) -> Pretrained:
    """Load pretrained weights for a model, adapted to its image size and input channels.

    Args:
        source: the workdir of a run, whose EMA weights are preferred, or any source of `weights.from_torch`.
        head_task: the task for which the last layer is kept; None to replace the layer.

    Raises:
        RunError, WeightsError: the source cannot be read, is of another family, its last layer was trained for another
            task, or parameters outside the last layer are missing, unexpected or of another shape.
    """
    if (backbone := backbone_of(model)) is not None and _is_classifier(source, backbone):
        return _of_backbone(load_pretrained_for(source, backbone), backbone)
    if not is_workdir(source):
        pretrained = _load_torch(source, model, with_classifier=head_task is not None)
        _check_head(pretrained, model, keep=head_task is not None)
        return pretrained
    run = restore_run(source)
    _check_same_network(source, run.model, model)
    if head_task not in (None, run.config.task):
        raise RunError(
            f"the last layer of the run in {source} was trained for the task {run.config.task.name!r} but config.task "
            f"is {head_task.name!r}; set config.init_head=new to initialize a new one"
        )
    resampled = resample_variables(model, run.variables, run.model.input_spec.size)
    variables = adapt_first_layer(model, resampled)
    if faults := [fault for path, fault in _differences(variables, model).items() if not _in_head(path, model)]:
        raise RunError(f"the weights in {source} do not match {model.name}: {'; '.join(faults)}")
    averaged = "EMA " if run.weights == "ema" else ""
    description = f"the {averaged}weights of step {run.step} in {source}{_describe_channels(run.model, model)}"
    pretrained = Pretrained(variables, run.model, run.labels, description, run.license)
    _check_head(pretrained, model, keep=head_task is not None)
    return pretrained


def _is_classifier(source: epath.PathLike, backbone: Model) -> bool:
    """Return whether weights are those of a classifier of the family of a backbone."""
    if is_workdir(source):
        return find_family(load_config(open_workdir(source)).model["name"]) is backbone.family
    return matching_formats(read_checkpoint(source).shapes)[0][0] is backbone.family


def _of_backbone(pretrained: Pretrained, backbone: Model) -> Pretrained:
    """Return the weights of a classifier as those of the backbone of a model; they have no head."""
    variables = {
        kind: {"backbone": {name: value for name, value in values.items() if name not in backbone.head_modules}}
        for kind, values in pretrained.variables.items()
    }
    return pretrained._replace(variables=variables, labels={}, has_head=False)


def _check_head(pretrained: Pretrained, model: Model, *, keep: bool) -> None:
    """Check that a last layer that is kept has the outputs of the model."""
    if keep and (faults := _differences(pretrained.variables, model)):
        raise RunError(
            f"the last layer of {pretrained.description} does not match the dataset: "
            f"{'; '.join(faults.values())}; set config.init_head=new to initialize a new one"
        )


def _load_torch(source: epath.PathLike, model: Model, *, with_classifier: bool) -> Pretrained:
    checkpoint = read_checkpoint(source)
    resolved = resolve_model(checkpoint, name=None if checkpoint.config else model.name)
    shared = {key: resolved.options[key] for key in ("num_classes", "in_chans") if key in resolved.options}
    # The model with the classes and channels of the weights.
    same = create_model(model.name, **{**model.options, **shared})
    theirs = create_model(resolved.name, **resolved.options) if checkpoint.config else same
    _check_same_network(source, theirs, model)
    variables = adapt_first_layer(model, from_checkpoint(same, checkpoint, with_classifier=with_classifier))
    names = checkpoint.config.class_names if checkpoint.config else None
    labels = {} if names is None else {"class_names": list(names)}
    remarks = _describe_normalization(theirs, model) + _describe_channels(theirs, model)
    if checkpoint.ignored:
        remarks += f" (ignored there: {', '.join(checkpoint.ignored)})"
    license = find_license(checkpoint, resolved.name)
    return Pretrained(variables, same, labels, f"the weights in {source}{remarks}", license)


def _check_same_network(source: epath.PathLike, theirs: Model, ours: Model) -> None:
    """Check that two models differ at most in classes, channels, image size and options of training."""
    if theirs.family is not ours.family:
        raise RunError(
            f"the weights in {source} are for {theirs.name}, a {theirs.family.module.__name__}; config.model.name "
            f"is {ours.name!r}, a {ours.family.module.__name__}: expected a model of the same family"
        )
    if keys := set(other_options(ours.family, theirs.options, ours.options)) - {"img_size", "in_chans"}:
        faults = [f"{key} {ours.options.get(key)!r}, not {theirs.options.get(key)!r}" for key in sorted(keys)]
        raise RunError(f"the weights in {source} are for {theirs.name}; config.model has {'; '.join(faults)}")


def _describe_normalization(theirs: Model, ours: Model) -> str:
    """Return a remark if the images were normalized differently; size and crop are options of the config."""
    if theirs.in_chans != ours.in_chans:
        return ""
    pairs = [(field, getattr(theirs.input_spec, field), getattr(ours.input_spec, field)) for field in ("mean", "std")]
    differing = [
        f"{field} {tuple(wanted)}, not {given}" for field, wanted, given in pairs if tuple(wanted) != tuple(given)
    ]
    return f" (trained on images with {listed(differing)})" if differing else ""


def _describe_channels(theirs: Model, ours: Model) -> str:
    if theirs.in_chans == ours.in_chans:
        return ""
    return f" (first layer adapted from {theirs.in_chans} to {count(ours.in_chans, 'input channel')})"


def merge_pretrained(
    pretrained: Pretrained, model: Model, fresh: dict[str, Any], *, init_head: str, labels: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Merge pretrained weights into freshly initialized variables.

    Args:
        fresh: the model's initialized variables; a new last layer is taken from them.
        init_head: "keep" or "new", for the last layer.
        labels: the labels of the dataset to train on.

    Returns:
        The variables on the host, and a sentence about their origin.
    """
    theirs = _flatten(pretrained.variables)

    def is_new(path: ParamPath) -> bool:
        return (init_head == "new" and _in_head(path, model)) or (not pretrained.has_head and path not in theirs)

    taken = [leaf if is_new(path) else theirs[path] for path, leaf in _flatten(fresh).items()]
    variables = jax.tree.unflatten(jax.tree.structure(fresh), jax.device_get(taken))
    if not pretrained.has_head:
        head = "a new head"
    elif init_head == "new":
        head = "a new last layer"
    elif _name_same_outputs(pretrained.labels, labels):
        head = "their last layer"
    else:
        head = "their last layer, which was trained for other labels"
    return variables, f"initialized from {pretrained.description}, with {head}"


def _name_same_outputs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Return whether labels do not contradict each other, in any normal form of Unicode.

    Flags, such as whether images are turned upright, are about inputs.
    """
    return all(
        value is None or isinstance(value, bool) or _composed(value) == _composed(ours.get(name, value))
        for name, value in theirs.items()
    )


def _composed(value: Any) -> str:
    return normalize_name(json.dumps(value, ensure_ascii=False))


def _in_head(path: ParamPath, model: Model) -> bool:
    return any(path[1 : 1 + len(layer)] == layer for layer in model.output_layers)


def _flatten(variables: dict[str, Any]) -> dict[ParamPath, Any]:
    """Return leaves by path, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree.flatten_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def _differences(variables: dict[str, Any], model: Model) -> dict[ParamPath, str]:
    theirs, ours = _flatten(variables), _flatten(model.shapes)
    names = {".".join(map(str, path[1:])): path for path in theirs.keys() | ours.keys()}
    faults = differences(_shapes(theirs), _shapes(ours))
    return {names[name]: f"{name} {fault}" for name, fault in faults.items()}


def _shapes(leaves: Mapping[ParamPath, Any]) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path[1:])): tuple(leaf.shape) for path, leaf in leaves.items()}
