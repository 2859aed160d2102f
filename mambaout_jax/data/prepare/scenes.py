"""The generated dataset `scenes`: handwritten digits on photographs, with a class for each pixel.

A scene is a crop of one of the two photographs of scikit-learn, at half its brightness, with 3 to 12 of its handwritten
digits in light colors on it: at 1/8 to 1/4 of the image's side, turned by any angle, overlapping, with low to high
contrast to what is below them. Training and validation have disjoint digits and disjoint parts of the photographs. In
the configs `cue_*`, the class of all digits is the color of a square in one of the corners, so that the class of a
pixel depends on something far away.

The photographs are "china" and "flower" of `sklearn.datasets.load_sample_images`, by Ignacio Piqueras and dany13 on
Flickr, licensed CC BY 2.0.

All drawing is on integers, and random numbers are raw words of Philox, so that pixels differ between machines only if
their JPEG decoders do.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.data.prepare.digits import NUM_VALIDATION
from mambaout_jax.data.prepare.pathfinder import Draws

DIGIT_CLASSES = ("background", *map(str, range(10)))
CUE_CLASSES = ("background", "red", "green", "blue", "yellow")
CUE_COLORS = ((255, 60, 60), (60, 255, 60), (60, 60, 255), (255, 255, 60))
DARKEST, LIGHTEST = 140, 255  # of each channel of a digit
DIGIT_SIDE = 8
UNIT = 256  # of coordinates, per pixel
# Ink, from 0 to 255, at or above which a pixel has the class of the digit.
INK_THRESHOLD = 128
MIN_VISIBLE = 12  # pixels of an object; others are not counted as objects


@dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """The parameters of the scenes of one size.

    Args:
        side: side of an image in pixels.
        cue: the class of all digits is the color of a square in a corner, not what they show.
    """

    side: int = 128
    num_train: int = 3_000
    num_validation: int = 300
    num_digits: tuple[int, int] = (3, 12)
    cue: bool = False


class Scene(NamedTuple):
    """One scene: image uint8 (h, w, 3), label map and instance map uint8 (h, w), class of each instance."""

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    classes: list[int]


class Material(NamedTuple):
    """Photographs uint8 (h, w, 3), digits (n, 8, 8) from 0 to 16, and their classes, of one split."""

    photographs: list[np.ndarray]
    digits: np.ndarray
    targets: np.ndarray


def load_material() -> dict[str, Material]:
    """Load the digits and the photographs of scikit-learn, split into training and validation."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    train, validation = model_selection.train_test_split(
        np.arange(len(digits.target)), test_size=NUM_VALIDATION, stratify=digits.target, random_state=0
    )
    images = [np.asarray(image) for image in datasets.load_sample_images().images]
    # The left two thirds are for training.
    cuts = [2 * image.shape[1] // 3 for image in images]
    parts = {
        "train": [image[:, :cut] for image, cut in zip(images, cuts, strict=True)],
        "validation": [image[:, cut:] for image, cut in zip(images, cuts, strict=True)],
    }
    pixels = digits.images.astype(np.int64)
    return {
        split: Material(parts[split], pixels[indices], digits.target[indices])
        for split, indices in (("train", train), ("validation", validation))
    }


def make_scene(config: ScenesConfig, material: Material, split: int, index: int) -> Scene:
    """Draw scene `index` of a split."""
    draws = Draws(1 << 32 | config.side << 16 | config.cue << 8 | split, index)
    side = config.side
    image = _draw_background(draws, material, side).astype(np.int64) // 2
    labels, instances = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    low, high = config.num_digits
    number, classes = low + _below(draws, high - low + 1), []
    cue = _below(draws, len(CUE_COLORS)) if config.cue else None
    for instance in range(1, number + 1):
        digit = _below(draws, len(material.targets))
        extent = side // 8 + _below(draws, side // 4 - side // 8 + 1)
        margin = 3 * extent * UNIT // 8
        center = margin + draws.below(side * UNIT - 2 * margin, 2)
        ink = draw_digit(material.digits[digit], side, extent, _below(draws, 360), center)
        visible = ink >= INK_THRESHOLD
        kind = 1 + (int(material.targets[digit]) if cue is None else cue)
        color = LIGHTEST - draws.below(LIGHTEST - DARKEST + 1, 3)
        image = (image * (255 - ink[..., None]) + color * ink[..., None]) // 255
        labels[visible], instances[visible] = kind, instance
        classes.append(kind)
    if cue is not None:
        _draw_cue(draws, cue, image, labels, instances)
    return Scene(image.astype(np.uint8), labels, instances, classes)


def _below(draws: Draws, bound: int) -> int:
    return int(draws.below(bound, 1)[0])


def _draw_background(draws: Draws, material: Material, side: int) -> np.ndarray:
    """Crop a square of a photograph, a quarter to all of its shorter side, and resize it."""
    photograph = material.photographs[_below(draws, len(material.photographs))]
    height, width = photograph.shape[:2]
    shortest = min(height, width)
    extent = shortest // 4 + _below(draws, shortest - shortest // 4)
    top, left = _below(draws, height - extent + 1), _below(draws, width - extent + 1)
    crop = photograph[top : top + extent, left : left + extent]
    rows = (2 * np.arange(side) + 1) * extent // (2 * side)
    if extent <= side:
        crop = crop[rows][:, rows]
    else:  # averages, of sums that are exact
        edges = np.arange(side + 1) * extent // side
        sums = np.add.reduceat(np.add.reduceat(crop.astype(np.int64), edges[:-1], 0), edges[:-1], 1)
        counts = np.diff(edges)
        crop = sums // (counts[:, None, None] * counts[None, :, None])
    return crop[:, ::-1] if _below(draws, 2) else crop


def draw_digit(digit: np.ndarray, side: int, extent: int, angle: int, center: np.ndarray) -> np.ndarray:
    """Draw a digit on an empty image, bilinearly.

    Args:
        digit: (8, 8), from 0 to 16.
        side: side of the image in pixels.
        extent: side of the digit in pixels.
        angle: in degrees, clockwise.
        center: of the digit, (y, x) in units of 1/256 px.

    Returns:
        The ink, from 0 to 255, int64 (side, side).
    """
    # Cosine and sine in units of 2**-14, rounded, so that every machine has the same.
    cosine, sine = (round(function(np.deg2rad(angle)) * 2**14) for function in (np.cos, np.sin))
    # The rows and columns that it can reach, 9/16 of its side times the square root of 2 from its center.
    reach = extent * UNIT * 13 // 16
    rows, columns = (slice(max(int(place - reach) // UNIT, 0), int(place + reach) // UNIT + 1) for place in center)
    pixels = np.arange(side) * UNIT + UNIT // 2
    y, x = pixels[rows, None] - int(center[0]), pixels[None, columns] - int(center[1])
    # Coordinates in the digit, in units of 1/256 of its pixels, from the middle of the first one.
    along = (cosine * x + sine * y) * DIGIT_SIDE // (extent * 2**14) + (DIGIT_SIDE - 1) * UNIT // 2
    down = (cosine * y - sine * x) * DIGIT_SIDE // (extent * 2**14) + (DIGIT_SIDE - 1) * UNIT // 2
    padded = np.pad(digit, 1)
    inside = (along > -UNIT) & (along < DIGIT_SIDE * UNIT) & (down > -UNIT) & (down < DIGIT_SIDE * UNIT)
    along, down = (np.where(inside, value + UNIT, 0) for value in (along, down))
    (row, y), (column, x) = np.divmod(down, UNIT), np.divmod(along, UNIT)
    row, column = np.minimum(row, DIGIT_SIDE), np.minimum(column, DIGIT_SIDE)
    top = padded[row, column] * (UNIT - x) + padded[row, column + 1] * x
    bottom = padded[row + 1, column] * (UNIT - x) + padded[row + 1, column + 1] * x
    ink = (top * (UNIT - y) + bottom * y) * 255 // (16 * UNIT * UNIT)
    # Steeper than interpolation, for sharp strokes at every size.
    drawn = np.zeros((side, side), np.int64)
    drawn[rows, columns] = np.where(inside, (3 * ink - 128).clip(0, 255), 0)
    return drawn


def _draw_cue(draws: Draws, cue: int, image: np.ndarray, labels: np.ndarray, instances: np.ndarray) -> None:
    """Draw a square of the color of the class, in a white frame, in one of the corners; its pixels have no class."""
    side, extent = len(labels), len(labels) // 4
    top, left = (_below(draws, 2) * (side - extent) for _ in range(2))
    frame = extent // 8
    image[top : top + extent, left : left + extent] = 255
    inner = slice(top + frame, top + extent - frame), slice(left + frame, left + extent - frame)
    image[inner] = CUE_COLORS[cue]
    corner = slice(top, top + extent), slice(left, left + extent)
    labels[corner], instances[corner] = IGNORED, 0


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image as PNG. Pixels are the same everywhere, compressed bytes depend on the version of zlib."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=6)
    return file.getvalue()


class Scenes(tfds.core.GeneratorBasedBuilder):
    """The dataset `scenes`, with label maps, instance maps and boxes. Nothing is downloaded.

    An instance map has the number of the object at each pixel, from 1 in the order of "objects", and 0 for none; of
    overlapping objects, it has the upper one. Objects of which less than a few pixels are visible are left out.
    """

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS: ClassVar = [
        ScenesConfig(name="128"),
        ScenesConfig(name="256", side=256),
        ScenesConfig(name="512", side=512, num_train=1_000),
        ScenesConfig(name="cue_128", cue=True, num_train=6_000),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "128"

    def _info(self) -> tfds.core.DatasetInfo:
        side, classes = self.builder_config.side, CUE_CLASSES if self.builder_config.cue else DIGIT_CLASSES
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits on photographs, with a class for each pixel.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                    "label_map": tfds.features.LabeledImage(
                        shape=(side, side, 1), encoding_format="png", labels=list(classes)
                    ),
                    "instance_map": tfds.features.Image(shape=(side, side, 1), encoding_format="png"),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=list(classes)),
                        }
                    ),
                }
            ),
            license="Photographs: CC BY 2.0, Ignacio Piqueras (china) and dany13 (flower).",
        )

    def _split_generators(self, dl_manager):
        config, material = self.builder_config, load_material()
        sizes = {"train": config.num_train, "validation": config.num_validation}
        return {name: self._generate_examples(material[name], split, sizes[name]) for split, name in enumerate(sizes)}

    def _generate_examples(self, material: Material, split: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            yield index, to_record(make_scene(self.builder_config, material, split, index))


def to_record(scene: Scene) -> dict[str, Any]:
    """Return the record of a scene, with objects that are large enough."""
    objects, renumbered = [], np.zeros_like(scene.instances)
    for instance, label in enumerate(scene.classes, 1):
        mask = scene.instances == instance
        if np.count_nonzero(mask) < MIN_VISIBLE:
            continue
        objects.append({"bbox": _bounding_box(mask), "label": label})
        renumbered[mask] = len(objects)
    return {
        "image": encode_png(scene.image),
        "label_map": encode_png(scene.labels),
        "instance_map": encode_png(renumbered),
        "objects": objects,
    }


def _bounding_box(mask: np.ndarray) -> tfds.features.BBox:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return tfds.features.BBox(
        ymin=rows[0] / height, xmin=columns[0] / width, ymax=(rows[-1] + 1) / height, xmax=(columns[-1] + 1) / width
    )
