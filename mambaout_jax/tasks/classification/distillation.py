"""Distillation: the predictions of a trained classifier, the teacher, as targets."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mambaout_jax.data.names import normalize_name
from mambaout_jax.models import InputSpec, Model
from mambaout_jax.tasks.api import Labels
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.labels import num_classes
from mambaout_jax.words import count

# Weights of red, green and blue in the luma of ITU-R BT.601, by which Pillow converts RGB to gray.
_LUMA = (0.299, 0.587, 0.114)


def soft_targets(
    teacher: Model,
    variables: dict[str, Any],
    spec: InputSpec,
    images: Float[Array, "b h w c"],
    temperature: float,
) -> Float[Array, "b k"]:
    """Compute the probabilities of a teacher's classes, softmax(logits / temperature), without dropout.

    Args:
        spec: by which the images are normalized.
    """
    pixels = match_channels(spec.denormalize(images), teacher.in_chans)
    return jax.nn.softmax(teacher.apply(variables, teacher.input_spec.normalize(pixels)) / temperature)


def match_channels(pixels: Float[Array, "b h w c"], channels: int) -> Float[Array, "b h w d"]:
    """Convert gray images to RGB, or RGB images to gray, for 3 or 1 channels.

    The teacher's first layer needs no adaptation. A gray student's teacher sees gray images, even if the dataset has
    colors.
    """
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 1:
        return jnp.sum(pixels * jnp.asarray(_LUMA).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
    return jnp.broadcast_to(pixels, (*pixels.shape[:-1], channels))


def check_teacher(teacher: Model, teacher_labels: Labels, labels: Labels) -> None:
    """Check that a teacher takes gray or RGB images and has the classes of a dataset.

    Without class names of both only the numbers are compared.

    Raises:
        TaskError: it does not.
    """
    if teacher.in_chans not in (1, 3):
        channels = count(teacher.in_chans, "channel")
        raise TaskError(f"the teacher takes images of {channels}; expected 1 (gray) or 3 (RGB)")
    theirs, ours = num_classes(teacher_labels), num_classes(labels)
    if theirs != ours:
        raise TaskError(
            f"the teacher has {count(theirs, 'class')} but the dataset has {ours}; expected a teacher with the classes "
            "of the dataset"
        )
    names = zip(teacher_labels.get("class_names") or (), labels.get("class_names") or (), strict=False)
    for index, (their_name, our_name) in enumerate(names):
        if normalize_name(their_name) != normalize_name(our_name):
            raise TaskError(
                f"class {index} is {their_name!r} in the teacher but {our_name!r} in the dataset; expected a teacher "
                "with the classes of the dataset, in their order"
            )
