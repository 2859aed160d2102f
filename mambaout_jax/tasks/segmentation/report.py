"""The sections of a report on a segmentation: the IoU of each class, and a gallery of predictions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Int, UInt8
from markupsafe import Markup

from mambaout_jax.checks import as_number
from mambaout_jax.data import DataError
from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.pages.render import render
from mambaout_jax.tasks.api import Labels, ScoreText, Section
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.images import resize_image
from mambaout_jax.tasks.labels import class_name
from mambaout_jax.tasks.pictures import data_uri, encode_picture
from mambaout_jax.tasks.predictions import NO_PREDICTIONS, evenly_spaced, open_evaluated, read_predictions
from mambaout_jax.tasks.segmentation.drawing import make_palette, overlay
from mambaout_jax.tasks.segmentation.metrics import Areas, iou, recall, summarize
from mambaout_jax.tasks.segmentation.source import SegmentationSource
from mambaout_jax.tasks.segmentation.transforms import Decoder, resize_labels

# Longest side of the label maps that an evaluation keeps, in pixels.
MAP_SIDE = 128
NUM_WORST, NUM_OTHERS = 12, 12
# Longest side of a picture of the gallery, in pixels.
PICTURE_SIDE = 320
_ARRAYS = ("areas", "maps", "fingerprint")


def shrink(labels: UInt8[Array, "b H W"], sizes: Int[Array, "b 2"]) -> UInt8[Array, "b h w"]:
    """Reduce label maps to at most `MAP_SIDE` pixels, by the nearest labels; small ones are kept."""
    canvas = tuple(min(side, MAP_SIDE) for side in labels.shape[1:])

    def of_image(labels, size):
        factor = jnp.maximum(size.max() / MAP_SIDE, 1)
        rows, columns = (((jnp.arange(side) + 0.5) * factor).astype(jnp.int32) for side in canvas)
        inside = (rows[:, None] < size[0]) & (columns[None, :] < size[1])
        return jnp.where(inside, labels[rows[:, None], columns[None, :]], IGNORED).astype(jnp.uint8)

    return jax.vmap(of_image)(labels, sizes)


def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
    """Return mIoU, mAcc, aAcc and the number of images."""
    columns = {
        f"{title}, %": f"{as_number(scores.get(key)):.2f}"
        for key, title in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc"))
    }
    return ScoreText(
        "",
        {**columns, "images": f"{int(scores.get('count', 0)):,}"},
        f"Every pixel of {split} is counted once, at the original size. The means leave out classes that are neither "
        "predicted nor labeled.",
    )


def sections(workdir: epath.Path, labels: Labels, open_split: Callable[[], SegmentationSource]) -> list[Section]:
    """Render the IoU of each class and the gallery.

    Args:
        open_split: opens the evaluated split.

    Raises:
        TaskError: predictions.npz is damaged.
    """
    predictions = _read_predictions(workdir)
    if predictions is None:
        return [Section("Predictions", Markup(f"<p>{NO_PREDICTIONS}</p>"))]
    names = list(labels.get("class_names") or ())
    palette = make_palette(names)
    gallery = make_gallery(predictions, palette, names, open_split)
    classes = make_classes(predictions["areas"], palette, names)
    return [
        Section("Classes", Markup(render(__package__, "classes.html.jinja", classes=classes))),
        Section("Predictions", Markup(render(__package__, "gallery.html.jinja", gallery=gallery))),
    ]


def _read_predictions(workdir: epath.Path) -> dict[str, np.ndarray] | None:
    predictions = read_predictions(workdir, _ARRAYS)
    if predictions is None:
        return None
    areas, maps, _ = predictions.values()
    if areas.ndim != 3 or areas.shape[1] != len(Areas._fields) or maps.ndim != 3 or len(maps) != len(areas):
        raise TaskError(f"{workdir / 'predictions.npz'} has arrays of inconsistent shapes; evaluate the workdir again")
    return predictions if len(areas) else None


def _areas(areas: np.ndarray) -> Areas:
    return Areas(*np.moveaxis(areas, -2, 0))


def make_classes(areas: np.ndarray, palette: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Return name, color, IoU, recall and share of the labeled pixels of each class, the worst IoU first."""
    total = _areas(areas.sum(0, dtype=np.int64))
    ious, recalls, pixels = iou(total), recall(total), max(int(total.labeled.sum()), 1)
    order = sorted(range(len(ious)), key=lambda index: (np.isnan(ious[index]), ious[index]))
    return [
        {
            "name": class_name(names, index),
            "color": "#{:02x}{:02x}{:02x}".format(*tuple(palette[index].tolist())),
            "iou": _percent(ious[index]),
            "recall": _percent(recalls[index]),
            "share": _percent(total.labeled[index] / pixels),
        }
        for index in order
    ]


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 1)


def make_gallery(
    predictions: Mapping[str, np.ndarray],
    palette: np.ndarray,
    names: list[str],
    open_split: Callable[[], SegmentationSource],
) -> dict[str, Any]:
    """Build the gallery: the images with the lowest mIoU, then others spread evenly over the rest.

    Images without labeled pixels have no mIoU; they are among the others.

    Returns:
        The number of images, the cards of each kind, and the reason for missing images.
    """
    scores = np.array([summarize(_areas(areas))["miou"] for areas in predictions["areas"]])
    order = np.argsort(scores, kind="stable")  # NaN last
    worst = order[: min(NUM_WORST, np.count_nonzero(~np.isnan(scores)))]
    others = np.sort(order[len(worst) :])
    spread = evenly_spaced(others, NUM_OTHERS)
    missing, pictures = None, {}
    try:
        source = open_evaluated(open_split, str(predictions["fingerprint"]))
        for index in (*worst, *spread):
            pictures[int(index)] = _draw(source, int(index), predictions["maps"][index], palette, len(names))
    except (DataError, MachineError, OSError) as error:
        missing = f"The images cannot be shown: {describe_fault(error) or reason(error)}."

    def card(index: int) -> dict[str, Any]:
        score = "no labeled pixels" if np.isnan(scores[index]) else f"{scores[index]:.1f} %"
        return {"index": int(index), "miou": score, "pictures": pictures.get(int(index))}

    return {
        "missing": missing,
        "count": len(scores),
        "worst": [card(index) for index in worst],
        "others": [card(index) for index in spread],
    }


def _draw(source, index, predicted, palette, num_classes) -> list[tuple[str, str]] | None:
    """Return data URIs of an image, its prediction and its labels, with a name for each; None if it cannot be read."""
    try:
        image, labels = Decoder(3, num_classes or IGNORED, source.exif_orientation)(source[index])
    except DataError as error:
        raise_machine_fault(error)
        return None
    factor = max(labels.shape) / PICTURE_SIDE
    size = tuple(max(1, round(side / factor)) for side in labels.shape) if factor > 1 else labels.shape
    height, width = _size_in_map(labels.shape, predicted.shape)
    image, labels = resize_image(image, size), resize_labels(labels, size)
    predicted = resize_labels(predicted[:height, :width], size)
    pictures = {
        "image": image,
        "prediction": overlay(image, predicted, palette),
        "label": overlay(image, labels, palette),
    }
    return [(name, data_uri(encode_picture(pixels))) for name, pixels in pictures.items()]


def _size_in_map(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the part of a reduced label map that an image of a size takes."""
    factor = max(max(size) / MAP_SIDE, 1)
    return tuple(max(1, min(int(side / factor + 0.5), limit)) for side, limit in zip(size, canvas, strict=True))
