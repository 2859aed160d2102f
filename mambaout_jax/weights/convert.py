"""Python functions for conversion: from PyTorch weights to variables and back."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from mambaout_jax.models import Model, create_model, variant_options
from mambaout_jax.weights.checkpoint import TorchCheckpoint, read_checkpoint
from mambaout_jax.weights.errors import MisfitError, NewHeadWarning, WeightsError, naming_source
from mambaout_jax.weights.input_channels import adapt_first_layer
from mambaout_jax.weights.key_map import Shape
from mambaout_jax.weights.license import find_license, license_notice
from mambaout_jax.weights.resolve import check_not_reduced, check_unambiguous, resolve_model, resolve_shapes
from mambaout_jax.weights.state_dict import (
    classifier_shapes,
    detect_format,
    from_tensors,
    to_tensors,
    with_new_classifier,
)
from mambaout_jax.weights.tensors import open_state_dict, warn_of_ignored
from mambaout_jax.words import count


def from_torch(model: Model, source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Convert PyTorch weights to the variables of a model, in float32.

    The key format is detected from the keys. The match is exact. Position embeddings of another image size are
    resampled as in `Model.resample_params`, from the size in config.json or else from square images. A license that
    forbids commercial use of the weights of a file or folder is stated in a warning.

    Args:
        source: a .safetensors file, a file of torch.save (.pth, .pth.tar, .ckpt, .pt, .bin), a Hugging Face folder in
            timm's format, a hub id (hf-hub:ORG/NAME), or a state dict of arrays or PyTorch tensors.

    Raises:
        WeightsError: the source cannot be read, parameters are missing, unexpected or of another shape (all are
            listed), or values are neither float32 nor bfloat16, or not finite.
        MissingExtraError: the source is a file of torch.save and PyTorch is not installed, or a hub id and
            huggingface_hub is not.
    """
    if not isinstance(source, Mapping):
        checkpoint = read_checkpoint(source)
        warn_of_ignored(checkpoint.origin, checkpoint.ignored)
        _warn_of_license(checkpoint, model.name)
        return from_checkpoint(model, checkpoint)
    tensors, shapes = open_state_dict(source)
    with _naming_variant(model, shapes):
        return from_tensors(model, tensors, shapes)


def from_checkpoint(model: Model, checkpoint: TorchCheckpoint, *, with_classifier: bool = True) -> dict[str, Any]:
    """Convert an open checkpoint to the variables of a model, as in `from_torch`.

    Args:
        with_classifier: False to ignore the last layer of the weights, if they have one; then the variables have none.
    """
    size = _trained_size(checkpoint)
    with naming_source(checkpoint.origin), _naming_variant(model, checkpoint.shapes):
        return from_tensors(model, checkpoint.tensors, checkpoint.shapes, size, with_classifier=with_classifier)


@contextlib.contextmanager
def _naming_variant(model: Model, shapes: Mapping[str, Shape]) -> Iterator[None]:
    """Replace the error of weights that do not fit a model by the names of both, if they fit another variant."""
    try:
        yield
    except MisfitError as error:
        if name := _other_variant(model, shapes):
            raise WeightsError(f"the weights are those of {name}; expected {model.name}") from error
        raise


def _other_variant(model: Model, shapes: Mapping[str, Shape]) -> str | None:
    """Return the variant that the weights have the shapes of, if it is not that of the model."""
    try:
        found = resolve_shapes(shapes)
    except WeightsError:
        return None
    return None if model.name in (found.name, *found.others) else found.name


def _warn_of_license(checkpoint: TorchCheckpoint, name: str) -> None:
    if notice := license_notice(find_license(checkpoint, name), name):
        warnings.warn(f"{checkpoint.origin}: {notice}", stacklevel=3)


def _trained_size(checkpoint: TorchCheckpoint) -> tuple[int, int] | None:
    """Return (height, width) of the training images, or None if the checkpoint does not contain it."""
    size = checkpoint.config.preprocessing.get("img_size") if checkpoint.config else None
    return (size, size) if isinstance(size, int) else size


def to_torch(
    model: Model, variables: dict[str, Any], key_format: str | None = None, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Convert the variables of a model to a state dict of arrays, which `torch.from_numpy` accepts if float32.

    Args:
        key_format: name of one of `model.family.key_formats`, not all of which can express every option; None for the
            first, which is timm's if timm has the family.
        dtype: dtype of all tensors but counters, "float32" or "bfloat16" (ml_dtypes.bfloat16).

    Raises:
        WeightsError: the format cannot express the model, or the variables belong to another model.
    """
    return to_tensors(model, variables, key_format, dtype)


def load_pretrained(
    source: str | os.PathLike,
    *,
    name: str | None = None,
    entry: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    key: Key[Array, ""] | None = None,
    **options: Any,
) -> tuple[Model, dict[str, Any]]:
    """Load a model with its weights; the model is identified by config.json or by the shapes of the tensors.

    A license that forbids commercial use of the weights is stated in a warning.

    Args:
        source: as in `from_torch`, except a state dict.
        name: name of the variant; None to identify it.
        entry: entry of a file of torch.save that contains the weights, for example "model"; None to find it by its
            name, moving averages first.
        num_classes: number of outputs; None for that of the weights, 0 for a model without a last layer. For another
            number, or weights without a last layer, it is initialized as in `Model.init`, with a `NewHeadWarning`.
        in_chans: number of input channels; None for that of the weights. For another number, the first layer is
            adapted by timm's rule, and mean and std are 0.5 unless they are given.
        img_size: side or (height, width) of the images; None for that of the weights. For another size, position
            embeddings are resampled as in `Model.resample_params`.
        key: key of a new last layer; None for `jax.random.key(0)`.
        options: other options of `create_model` that override those of the weights (dtype, drop_path_rate, ...).

    Raises:
        WeightsError: as in `from_torch`, or, without a name, no registered variant has these shapes or
            several that differ in options or preprocessing have them; or `check_not_reduced`.
        MissingExtraError: as in `from_torch`.
        ModelError: an option is unknown or out of range.
    """
    checkpoint = read_checkpoint(source, entry=entry)
    warn_of_ignored(checkpoint.origin, checkpoint.ignored)
    resolved = resolve_model(checkpoint, name)
    check_unambiguous(checkpoint.origin, resolved)
    check_not_reduced(checkpoint, resolved, img_size)
    _warn_of_license(checkpoint, resolved.name)
    trained = {**variant_options(resolved.name), **resolved.options}
    changed = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size}
    changed = {option: value for option, value in changed.items() if value is not None}
    if changed.get("in_chans", trained["in_chans"]) != trained["in_chans"]:
        trained = {option: value for option, value in trained.items() if option not in ("mean", "std")}
    model = create_model(resolved.name, **{**trained, **options, **changed})
    theirs = create_model(
        model.name, **{**model.options, "num_classes": trained["num_classes"], "in_chans": trained["in_chans"]}
    )
    with naming_source(checkpoint.origin), _naming_variant(theirs, checkpoint.shapes):
        last_layer = classifier_shapes(theirs, detect_format(theirs, checkpoint.shapes))
    has_head = not last_layer.keys().isdisjoint(checkpoint.shapes)
    new_head = num_classes not in (None, 0) and (num_classes != trained["num_classes"] or not has_head)
    with_classifier = num_classes != 0 and not new_head
    variables = adapt_first_layer(model, from_checkpoint(theirs, checkpoint, with_classifier=with_classifier))
    if new_head:
        found = f"the weights have {trained['num_classes']}" if has_head else "the weights have none"
        warnings.warn(
            f"{checkpoint.origin}: initialized a new last layer for {count(num_classes, 'class')} ({found}); train it "
            "before use",
            NewHeadWarning,
            stacklevel=2,
        )
        variables = with_new_classifier(model, variables, jax.random.key(0) if key is None else key)
    return model, variables
