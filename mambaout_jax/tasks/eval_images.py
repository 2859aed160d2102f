"""The evaluation transform of single images, as a model and its labels define it."""

from mambaout_jax.data import EvalTransform
from mambaout_jax.data.imagenet_classes import imagenet_class_names
from mambaout_jax.models import Model
from mambaout_jax.tasks.api import Labels


def eval_image_transform(model: Model, *, exif_orientation: bool = False) -> EvalTransform:
    """Build the evaluation transform of a model, from its `input_spec`.

    Args:
        exif_orientation: turn images upright by their EXIF orientation.
    """
    spec = model.input_spec
    return EvalTransform(
        size=spec.size,
        channels=model.in_chans,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        exif_orientation=exif_orientation,
    )


def is_turned_upright(labels: Labels) -> bool:
    """Return whether images are turned upright by their EXIF orientation: as in the dataset of the weights.

    If that is unknown, photographs are turned upright, except for models of ImageNet, which were trained without that.
    """
    names = tuple(labels.get("class_names") or ())
    return labels.get("exif_orientation", names != imagenet_class_names())
