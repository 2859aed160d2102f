"""From images in Python to class probabilities: `mo.preprocess` and `mo.predict`."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.data.imagenet_classes import imagenet_class_names
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import InputSpec, Model
from mambaout_jax.tasks.api import MAX_PREDICTED, Example, stack_examples
from mambaout_jax.tasks.classification.predictor import ClassProbabilities, ImagePredictor, classifies
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.eval_images import eval_image_transform, is_turned_upright
from mambaout_jax.words import count

_CHANNELS = ((), (1,), (3,), (4,))
# A path, an encoded image, a PIL image, or pixels.
OneImage = str | os.PathLike | bytes | Image.Image | UInt8[np.ndarray, "..."] | UInt8[Array, "..."]


def preprocess(
    images: OneImage | Sequence[OneImage], model: Model, *, exif_orientation: bool | None = None
) -> Float[Array, "b h w c"]:
    """Compute a batch for `model.apply`: decode, resize, crop and normalize images as `model.input_spec` says.

    Args:
        images: one image or a list: paths, encoded bytes, PIL images, or uint8 pixels (h, w), (h, w, 1), (h, w, 3) or
            (h, w, 4), whose alpha is dropped; or one array of pixels (b, h, w, c).
        exif_orientation: turn images upright by their EXIF orientation. None to do so unless the classes are those of
            ImageNet-1k (assumed for 1,000 outputs without `class_names`), whose models were trained without it.

    Raises:
        DataError: an image cannot be read or decoded, or there is none.
    """
    predictor = _build_predictor(model, None, exif_orientation)
    pixels = np.stack([example["image"] for example in _examples(predictor, _list_images(images))])
    return _normalize(model.input_spec, pixels)


def predict(
    model: Model,
    variables: dict[str, Any],
    images: OneImage | Sequence[OneImage],
    *,
    top: int = 5,
    class_names: Sequence[str] | None = None,
    exif_orientation: bool | None = None,
) -> list[ClassProbabilities]:
    """Compute the class probabilities of each image.

    The results are those of the command `predict` for the same class names and EXIF orientation rule. The model is
    compiled once for each number of images up to 32.

    Args:
        images: as in `preprocess`.
        top: number of classes that are shown.
        class_names: names in the order of the outputs. None for those of ImageNet-1k if the model has 1,000 outputs,
            else for no names.
        exif_orientation: as in `preprocess`.

    Raises:
        DataError: an image cannot be read or decoded, or there is none.
        TaskError: the model does not classify images or has no last layer, the number of names is not that of the
            outputs, or the probabilities are not finite.
    """
    if not classifies(model):
        raise TaskError(
            f"{model.name} does not classify images; call mambaout_jax.evaluate.predict.predict_files with its run "
            "(mo.load_run)"
        )
    if not model.num_classes:
        raise TaskError(f"{model.name} has no last layer (num_classes is 0); use model.embed")
    if class_names is not None and len(class_names) != model.num_classes:
        names = count(len(class_names), "name")
        raise TaskError(f"class_names has {names}; expected {model.num_classes}, one per output")
    predictor = _build_predictor(model, None if class_names is None else tuple(class_names), exif_orientation)
    named = _list_images(images)
    batch_size, found = min(len(named), MAX_PREDICTED), []
    for start in range(0, len(named), batch_size):
        examples = list(_examples(predictor, named[start : start + batch_size]))
        rows = predictor(variables, stack_examples(predictor, examples, batch_size))
        found += rows[: len(examples)]
    for (name, _), row in zip(named, found, strict=True):
        if isinstance(row, str):
            raise TaskError(f"{name}: {row}")
    return [row._replace(top=top) for row in found]


@functools.partial(jax.jit, static_argnums=0)
def _normalize(spec: InputSpec, pixels: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return spec.normalize(pixels)


# Cached, because a predictor has the compiled model.
@functools.lru_cache(maxsize=4)
def _build_predictor(
    model: Model, class_names: tuple[str, ...] | None, exif_orientation: bool | None
) -> ImagePredictor:
    if class_names is None and model.num_classes == len(imagenet_class_names()):
        class_names = imagenet_class_names()
    labels = {"class_names": class_names}
    upright = is_turned_upright(labels) if exif_orientation is None else exif_orientation
    return ImagePredictor(model, eval_image_transform(model, exif_orientation=upright), labels)


def _list_images(images: Any) -> list[tuple[str, Any]]:
    """Return each image with its name for messages."""
    is_batch = isinstance(images, list | tuple) or (not isinstance(images, Image.Image) and np.ndim(images) == 4)
    if not is_batch:
        return [(_name(images, "the image"), images)]
    if not len(images):
        raise DataError("there are no images; expected at least one")
    return [(_name(image, f"images[{index}]"), image) for index, image in enumerate(images)]


def _name(image: Any, otherwise: str) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise


def _examples(predictor: ImagePredictor, named: Sequence[tuple[str, Any]]) -> Iterator[Example]:
    for name, image in named:
        try:
            yield predictor.prepare(_read(image))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error


def _read(image: Any) -> bytes | Image.Image:
    """Return an encoded image or a PIL image.

    Raises:
        DataError: the file cannot be read, or the value is not an image.
    """
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(os.path.expanduser(image)).read_bytes()
        except OSError as error:
            raise_machine_fault(error, image)
            raise DataError(reason(error)) from error
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size or pixels.shape[2:] not in _CHANNELS:
        raise DataError(
            f"an array of {pixels.dtype} with shape {pixels.shape} is not an image; expected uint8 pixels (h, w, c) "
            "with 1, 3 or 4 channels, a path, encoded bytes or a PIL image"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
