"""Pictures of objects: boxes, masks and labels over an image."""

from collections.abc import Sequence

import cv2
import numpy as np

from mambaout_jax.tasks.pictures import distinct_color

# Of the color of a mask over the image.
OPACITY = 0.45
# Of errors.
RED = (230, 40, 40)


def color_of(index: int) -> tuple[int, int, int]:
    """Return the color of a class; the first of them are not red, the color of errors."""
    return distinct_color(index + 1)


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    labels: Sequence[str],
    masks: Sequence[np.ndarray],
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Return an RGB image with the boxes, masks and labels of objects, in the colors of their classes.

    Args:
        image: uint8 (h, w, c).
        boxes: (n, 4) in pixels.
        masks: uint8 (h, w), of each object.
        colors: of the objects; None for those of their classes.
    """
    picture = np.broadcast_to(image, (*image.shape[:2], 3)).copy()
    colors = [color_of(int(kind)) for kind in classes] if colors is None else colors
    for mask, color in zip(masks, colors, strict=True):
        inside = mask.astype(bool)
        blend = (1 - OPACITY) * picture[inside] + OPACITY * np.array(color)
        picture[inside] = blend.round().astype(np.uint8)
    scale = max(max(image.shape[:2]) / 1000, 0.35)
    width = max(1, round(2 * scale))
    for box, color in zip(boxes, colors, strict=True):
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), color, width)
    for box, label, color in zip(boxes, labels, colors, strict=True):
        _draw_label(picture, label, round(float(box[0])), round(float(box[1])), color, scale)
    return picture


def _draw_label(picture, text, x, y, color, scale):
    """Write a text on a rectangle of a color, above a point if there is room."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(1.5 * scale))
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no other characters
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    top = y - height - below - 2 if y - height - below - 2 >= 0 else y
    x = max(0, min(x, picture.shape[1] - width))
    cv2.rectangle(picture, (x, top), (x + width, top + height + below + 1), color, cv2.FILLED)
    dark = sum(color) > 380
    cv2.putText(
        picture, text, (x, top + height), font, scale, (0, 0, 0) if dark else (255, 255, 255), thickness, cv2.LINE_AA
    )
