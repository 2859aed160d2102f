"""The sections of a report on detections: precision and recall, classes, and a gallery."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
from etils import epath
from markupsafe import Markup
from matplotlib.figure import Figure

from mambaout_jax.checks import as_number
from mambaout_jax.data import DataError
from mambaout_jax.errors import reason
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.machine import MachineError, describe_fault, raise_machine_fault
from mambaout_jax.pages.figures import BLUE, GREY, INK, ORANGE, adapt_svg, style_axes
from mambaout_jax.pages.render import render
from mambaout_jax.tasks.api import Labels, ScoreText, Section
from mambaout_jax.tasks.detection.drawing import RED, color_of, draw_objects
from mambaout_jax.tasks.detection.evaluation import KINDS, STATISTICS, ImageDetections, run_cocoeval, statistics_of
from mambaout_jax.tasks.detection.objects import Objects, box_ious, decode_masks
from mambaout_jax.tasks.detection.source import DetectionSource
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.images import decode_pixels
from mambaout_jax.tasks.labels import class_name
from mambaout_jax.tasks.pictures import data_uri, encode_picture
from mambaout_jax.tasks.predictions import NO_PREDICTIONS, evenly_spaced, open_evaluated, read_predictions

NUM_WORST, NUM_OTHERS = 12, 12
# Minimum IoU for a detection to match an object.
FOUND_IOU = 0.5
# Longest side of a picture of the gallery, in pixels.
PICTURE_SIDE = 480
_ARRAYS = ("counts", "sizes", "boxes", "scores", "classes", "mask_lengths", "mask_bytes", "fingerprint")
_NAMES = {
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP50, IoU 0.50",
    "ap75": "AP75, IoU 0.75",
    "ap_small": "AP, small objects",
    "ap_medium": "AP, medium objects",
    "ap_large": "AP, large objects",
    "ar1": "recall with 1 detection",
    "ar10": "recall with 10 detections",
    "ar100": "recall with 100 detections",
    "ar_small": "recall, small objects",
    "ar_medium": "recall, medium objects",
    "ar_large": "recall, large objects",
}


def score_text(scores: Mapping[str, Any], split: str) -> ScoreText:
    """Return the average precision of boxes and masks, and the number of images."""
    columns = {
        f"{kind} {title}, %": f"{as_number(scores.get(f'{kind}_{key}')):.2f}"
        for kind in KINDS
        for key, title in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))
    }
    return ScoreText(
        "",
        {**columns, "images": f"{int(scores.get('count', 0)):,}"},
        f"COCO's metrics on {split}, at the original size of the images, with at most 100 detections of each.",
    )


def join_detections(collected: Sequence[tuple[int, ImageDetections, tuple[int, int]]]) -> dict[str, np.ndarray]:
    """Return the detections of all images, one after the other, in the order of their indices.

    "counts" (n,) of detections and "sizes" (n, 2) of each image; "boxes" (m, 4), "scores" (m,) and "classes" (m,) of
    all detections; and their masks, as run-length encodings: "mask_bytes", and "mask_lengths" (m,).
    """
    ordered = [entry[1:] for entry in sorted(collected, key=lambda entry: entry[0])]
    found = [detections for detections, _ in ordered]
    masks = [mask["counts"] for detections in found for mask in detections.masks]
    return {
        "counts": np.array([len(detections.scores) for detections in found], np.int32),
        "sizes": np.array([size for _, size in ordered], np.int32).reshape(-1, 2),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(each.boxes for each in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(each.scores for each in found)]),
        "classes": np.concatenate([np.zeros(0, np.int32), *(each.classes for each in found)]),
        "mask_lengths": np.array([len(mask) for mask in masks], np.int32),
        "mask_bytes": np.frombuffer(b"".join(masks), np.uint8),
    }


def split_detections(arrays: Mapping[str, np.ndarray]) -> list[ImageDetections]:
    """Return the detections of each image from the arrays of `join_detections`."""
    ends = np.cumsum(arrays["mask_lengths"])
    content = arrays["mask_bytes"].tobytes()
    found, first = [], 0
    for number, size in zip(arrays["counts"].tolist(), arrays["sizes"].tolist(), strict=True):
        rows = slice(first, first + number)
        masks = [
            {"size": size, "counts": content[end - length : end]}
            for end, length in zip(ends[rows].tolist(), arrays["mask_lengths"][rows].tolist(), strict=True)
        ]
        found.append(ImageDetections(arrays["boxes"][rows], arrays["scores"][rows], arrays["classes"][rows], masks))
        first += number
    return found


def sections(workdir: epath.Path, labels: Labels, open_split: Callable[[], DetectionSource]) -> list[Section]:
    """Render precision and recall, the AP of each class, and the gallery.

    Args:
        open_split: opens the evaluated split.

    Raises:
        TaskError: predictions.npz is damaged.
    """
    arrays = read_predictions(workdir, _ARRAYS)
    if arrays is None or not len(arrays["counts"]):
        return [Section("Predictions", Markup(f"<p>{NO_PREDICTIONS}</p>"))]
    if arrays["counts"].sum() != len(arrays["scores"]) or arrays["mask_lengths"].sum() != len(arrays["mask_bytes"]):
        raise TaskError(f"{workdir / 'predictions.npz'} has arrays of inconsistent shapes; evaluate the workdir again")
    names = list(labels.get("class_names") or ())
    found = split_detections(arrays)
    try:
        source = open_evaluated(open_split, str(arrays["fingerprint"]))
        objects = source.all_objects
        evaluations = run_cocoeval(objects, dict(zip(objects, found, strict=True)))
    except (DataError, MachineError, MissingExtraError, OSError) as error:
        sentence = f"The objects of the images cannot be read: {describe_fault(error) or reason(error)}."
        return [Section("Predictions", Markup("<p>{}</p>").format(sentence))]
    curves = draw_curves(evaluations)
    table = [
        {"name": _NAMES[key], **{kind: _percent(statistics_of(evaluations[kind])[key]) for kind in KINDS}}
        for key in STATISTICS
    ]
    classes = rank_classes(evaluations, list(objects.values()), names)
    gallery = make_gallery(found, source, names)
    return [
        Section(
            "Precision and recall", Markup(render(__package__, "precision.html.jinja", curves=curves, table=table))
        ),
        Section("Classes", Markup(render(__package__, "classes.html.jinja", classes=classes))),
        Section("Predictions", Markup(render(__package__, "gallery.html.jinja", gallery=gallery))),
    ]


def _percent(value: float) -> str:
    return "" if value < 0 else f"{value:.1f}"


def draw_curves(evaluations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw precision over recall of boxes and masks, as means over classes, at two overlaps."""
    curves = []
    for kind, evaluation in evaluations.items():
        # (overlap, recall, class, area, detections), -1 for classes without objects
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        recalls = evaluation.params.recThrs
        lines = {}
        for index, iou in ((0, "0.50"), (5, "0.75")):
            of_classes = precision[index][:, (precision[index] > -1).all(0)]
            if of_classes.size:
                lines[f"IoU {iou}"] = 100 * of_classes.mean(1)
        if lines:
            about = f"{kind}: " + "; ".join(
                f"{name}, mean precision {line.mean():.1f} %" for name, line in lines.items()
            )
            curves.append({"title": f"{kind.capitalize()}es" if kind == "box" else "Masks", "about": about})
            curves[-1]["svg"] = _draw(kind, 100 * recalls, lines)
    return curves


def _draw(kind: str, recalls: np.ndarray, lines: Mapping[str, np.ndarray]) -> Markup:
    styles = ({"color": BLUE, "linewidth": 2}, {"color": ORANGE, "linewidth": 1.5, "linestyle": (0, (4, 1.5))})
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": kind, "font.size": 9}):
        figure = Figure(figsize=(3.5, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for (name, values), style in zip(lines.items(), styles, strict=False):
            axes.plot(recalls, values, label=name, **style)
        style_axes(axes, "recall, %")
        axes.set_ylabel("precision, %", color=GREY)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.legend(frameon=False, labelcolor=INK, handlelength=2.2)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True)
    return adapt_svg(svg.getvalue(), f"precision-{kind}")


def rank_classes(
    evaluations: Mapping[str, Any], objects: Sequence[Objects], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return name, color, AP of boxes and masks, and number of objects of each class, the worst first."""
    numbers = np.bincount(np.concatenate([np.zeros(0, int), *(each.classes for each in objects)]))
    rows = []
    for index in range(evaluations["box"].eval["precision"].shape[2]):
        values = {}
        for kind, evaluation in evaluations.items():
            precision = evaluation.eval["precision"][:, :, index, 0, -1]
            known = precision[precision > -1]
            values[kind] = 100 * float(known.mean()) if known.size else None
        rows.append(
            {
                "name": class_name(names, index),
                "color": "#{:02x}{:02x}{:02x}".format(*color_of(index)),
                "count": f"{int(numbers[index]) if index < len(numbers) else 0:,}",
                **{kind: None if value is None else round(value, 1) for kind, value in values.items()},
            }
        )
    return sorted(rows, key=lambda row: (row["box"] is None, row["box"]))


class Matches(NamedTuple):
    """Which detections of an image found an object or are on a crowd, and which objects were found."""

    correct: np.ndarray
    found: np.ndarray

    @property
    def errors(self) -> int:
        """Return the number of false positives and missed objects."""
        return int((~self.correct).sum() + (~self.found).sum())


def match(detections: ImageDetections, objects: Objects) -> Matches:
    """Match detections with objects of their class, best scores first.

    As in COCO's metrics, detections of which at least half is on a crowd of their class are not false positives.
    """
    wanted = objects.trainable
    same = detections.classes[:, None] == objects.classes[None, :]
    ious = np.where(same, box_ious(detections.boxes, objects), 0.0)
    correct = ious[:, objects.crowd].max(1, initial=0.0) >= FOUND_IOU
    found = np.zeros(len(wanted), bool)
    for index in range(len(correct)):
        free = np.where(found, 0.0, ious[index, wanted])
        if free.size and free.max() >= FOUND_IOU:
            correct[index], found[free.argmax()] = True, True
    return Matches(correct, found)


def make_gallery(found: Sequence[ImageDetections], source: DetectionSource, names: Sequence[str]) -> dict[str, Any]:
    """Build the gallery: the images with the most errors, then others spread evenly over the rest."""
    shown = [detections.shown for detections in found]
    objects = list(source.all_objects.values())
    matches = [match(detections, each) for detections, each in zip(shown, objects, strict=True)]
    errors = np.array([each.errors for each in matches])
    order = np.argsort(-errors, kind="stable")
    worst = [int(index) for index in order[:NUM_WORST] if errors[index]]
    others = np.sort(order[len(worst) :])
    spread = evenly_spaced(others, NUM_OTHERS)

    def card(index: int) -> dict[str, Any]:
        missed, false = int((~matches[index].found).sum()), int((~matches[index].correct).sum())
        return {
            "index": index,
            "about": f"{missed} missed, {false} false" if errors[index] else "all found",
            "pictures": _draw_pair(source, index, shown[index], objects[index], matches[index], names),
        }

    return {
        "count": len(found),
        "worst": [card(index) for index in worst],
        "others": [card(int(index)) for index in spread],
    }


def _draw_pair(
    source: DetectionSource,
    index: int,
    detections: ImageDetections,
    objects: Objects,
    matches: Matches,
    names: Sequence[str],
) -> list[tuple[str, str]] | None:
    """Return data URIs of the image with its detections and with its objects; None if it cannot be read.

    False positives and missed objects are red.
    """

    def colors_of(classes: np.ndarray, good: np.ndarray) -> list[tuple[int, int, int]]:
        return [color_of(int(kind)) if fine else RED for kind, fine in zip(classes, good, strict=True)]

    try:
        image = decode_pixels(source[index].image, 3, exif_orientation=source.exif_orientation)
        wanted = objects.trainable
        truth = decode_masks([objects.encoded(each) for each in wanted])
        masks = decode_masks(detections.masks)
    except DataError as error:
        raise_machine_fault(error)
        return None
    found = zip(detections.classes, detections.scores, matches.correct, strict=True)
    scores = [f"{'' if fine else 'false '}{class_name(names, kind)} {100 * score:.0f}" for kind, score, fine in found]
    classes = objects.classes[wanted]
    names_of = [
        f"{'' if fine else 'missed '}{class_name(names, kind)}"
        for kind, fine in zip(classes, matches.found, strict=True)
    ]
    factor = PICTURE_SIDE / max(image.shape[:2])
    pictures = {
        "detections, score in %": draw_objects(
            _resize(image, factor),
            factor * detections.boxes,
            detections.classes,
            scores,
            [_resize(mask, factor) for mask in masks],
            colors_of(detections.classes, matches.correct),
        ),
        "objects": draw_objects(
            _resize(image, factor),
            factor * objects.boxes[wanted],
            classes,
            names_of,
            [_resize(mask, factor) for mask in truth],
            colors_of(classes, matches.found),
        ),
    }
    return [(name, _encode(picture)) for name, picture in pictures.items()]


def _resize(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Resize an image (h, w, 3) or a mask (h, w), masks to the nearest pixels."""
    size = tuple(max(1, round(side * factor)) for side in pixels.shape[1::-1])
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if pixels.ndim == 2 else smooth)


def _encode(picture: np.ndarray) -> str:
    return data_uri(encode_picture(picture))
