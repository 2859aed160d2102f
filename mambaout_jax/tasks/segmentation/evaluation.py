"""Label maps at the original size of images that lie on canvases of a few sizes.

An image is resized on the host and placed at the top left of a canvas, one of a few static sizes; the rest has the mean
color, which is 0 after normalization. The size of the image, and that of the original one, are known only at run time:
logits are resized by products with matrices that are computed from them.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.models import Model
from mambaout_jax.ops.images import blank_outside
from mambaout_jax.ops.sharding import map_rows
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.images import Size
from mambaout_jax.tasks.segmentation.canvases import Canvases

# Entries of an example that do not depend on labels.
IMAGE_KEYS = ("images", "sizes", "original", "shape")

# A row and a column.
Corner = tuple[int | Int[Array, ""], int | Int[Array, ""]]

# Rows of the original image that are computed at once.
BLOCK_ROWS = 64
_resize_matmul = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of an image that are segmented one by one: their side and their distance, in pixels.

    Raises:
        TaskError: the windows do not cover all pixels.
    """

    side: int
    stride: int

    def __post_init__(self):
        if self.stride > self.side:
            raise TaskError(
                f"config.eval.stride is {self.stride} and config.eval.window {self.side}, so that no window covers "
                f"some pixels; unset eval.stride, or set it to at most {self.side}"
            )


class Map(NamedTuple):
    """Logits of an image in a canvas, and how they are resized to the original image.

    Args:
        logits: (h, w, k), at the size of the canvas or smaller.
        canvas: (height, width) of the canvas.
        size: (height, width) of the image in the canvas.
        flipped: whether the image was flipped horizontally.
    """

    logits: Float[Array, "h w k"]
    canvas: Size
    size: Int[Array, " 2"]
    flipped: bool = False

    def matrices(
        self, original: Int[Array, " 2"], canvas: Size, corner: Corner
    ) -> tuple[Float[Array, "H h"], Float[Array, "W w"]]:
        """Return the matrices that resize rows and columns to the original image, or to a part of it.

        Logits are interpolated twice, to the canvas of the network and from the image in it to the original image.
        """
        found = []
        for axis in (0, 1):
            to_network = bilinear_matrix(
                self.logits.shape[axis], self.canvas[axis], self.logits.shape[axis], self.canvas[axis]
            )
            to_original = bilinear_matrix(
                self.size[axis], original[axis], self.canvas[axis], canvas[axis], start=corner[axis]
            )
            if axis == 1 and self.flipped:
                columns = jnp.arange(self.canvas[1])
                # Column i of the upright image is column size - 1 - i of the flipped one.
                to_network = to_network[jnp.where(columns < self.size[1], self.size[1] - 1 - columns, columns)]
            found.append(_resize_matmul("ij,jk->ik", to_original, to_network))
        return found[0], found[1]


def bilinear_matrix(
    old: int | Int[Array, ""],
    new: int | Int[Array, ""],
    old_canvas: int,
    new_canvas: int,
    start: int | Int[Array, ""] = 0,
) -> Float[Array, "new_canvas old_canvas"]:
    """Build the matrix that interpolates the first `old` pixels of an axis to `new` ones, as `ops.resize_bilinear`.

    Args:
        start: the first of the new pixels that are computed.
    """
    scale = jnp.asarray(old, jnp.float32) / jnp.maximum(jnp.asarray(new, jnp.float32), 1)
    center = jnp.clip((start + jnp.arange(new_canvas) + 0.5) * scale - 0.5, 0, jnp.maximum(old - 1, 0))
    return jnp.maximum(0.0, 1 - jnp.abs(center[:, None] - jnp.arange(old_canvas)[None, :]))


def predict_labels(
    maps: Sequence[Map], original: Int[Array, " 2"], canvas: Size, corner: Corner = (0, 0)
) -> UInt8[Array, "H W"]:
    """Predict the class of each pixel of an original image in its canvas; pixels outside of the image are ignored.

    The logits of one map are compared directly, the probabilities of several are averaged.

    Args:
        corner: the row and the column of the original image at the top left of the canvas.
    """
    resized = [of_map.matrices(original, canvas, corner) for of_map in maps]
    blocks = -(-canvas[0] // BLOCK_ROWS)

    def predict_block(block):
        total = 0.0
        for of_map, (rows, columns) in zip(maps, resized, strict=True):
            rows = jnp.pad(rows, ((0, blocks * BLOCK_ROWS - canvas[0]), (0, 0)))
            rows = lax.dynamic_slice_in_dim(rows, block * BLOCK_ROWS, BLOCK_ROWS)
            x = _resize_matmul("yh,hwk->ywk", rows, of_map.logits)
            x = _resize_matmul("xw,ywk->yxk", columns, x)
            total += jax.nn.softmax(x) if len(maps) > 1 else x
        return total.argmax(-1).astype(jnp.uint8)

    labels = lax.map(predict_block, jnp.arange(blocks)).reshape(-1, canvas[1])[: canvas[0]]
    rows, columns = (corner[axis] + jnp.arange(canvas[axis]) for axis in (0, 1))
    inside = (rows[:, None] < original[0]) & (columns[None, :] < original[1])
    return jnp.where(inside, labels, IGNORED)


def canvas_logits(
    model: Model,
    variables: dict[str, Any],
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    windows: Windows | None,
) -> Float[Array, "b _ _ k"]:
    """Compute the logits of normalized images in canvases, whole or as means over windows.

    Windows lie within the image, not the canvas, where the image is not smaller than a window.
    """
    if windows is None or images.shape[1:3] == (windows.side, windows.side):
        return model.apply(variables, images)
    return jax.vmap(lambda image, size: _window_logits(model, variables, image, size, windows))(images, sizes)


def _window_logits(model, variables, image, size, windows):
    side, canvas = windows.side, image.shape[:2]
    starts = [
        _window_starts(length, canvas_length, windows) for length, canvas_length in zip(size, canvas, strict=True)
    ]
    tops, lefts = starts
    grid = jnp.stack(
        [x.ravel() for x in jnp.meshgrid(jnp.arange(len(tops[0])), jnp.arange(len(lefts[0])), indexing="ij")], 1
    )

    def add(carry, index):
        total, hits = carry
        top, left = tops[0][index[0]], lefts[0][index[1]]
        used = (tops[1][index[0]] & lefts[1][index[1]]).astype(jnp.float32)
        window = lax.dynamic_slice(image, (top, left, 0), (side, side, image.shape[2]))
        logits = _to_size(model.apply(variables, window[None])[0], side)
        current = lax.dynamic_slice(total, (top, left, 0), logits.shape)
        total = lax.dynamic_update_slice(total, current + used * logits, (top, left, 0))
        current = lax.dynamic_slice(hits, (top, left), (side, side))
        return (total, lax.dynamic_update_slice(hits, current + used, (top, left))), None

    zeros = jnp.zeros((*canvas, model.num_classes), jnp.float32), jnp.zeros(canvas, jnp.float32)
    (total, hits), _ = lax.scan(add, zeros, grid)
    return total / jnp.maximum(hits, 1)[..., None]


def _to_size(logits, side):
    rows, columns = (bilinear_matrix(old, side, old, side) for old in logits.shape[:2])
    return _resize_matmul("yh,xw,hwk->yxk", rows, columns, logits)


def _window_starts(length, canvas, windows):
    """Return where windows start along an axis, and whether each is used."""
    most = max(-(-(canvas - windows.side) // windows.stride), 0) + 1
    last = jnp.maximum(length - windows.side, 0)
    starts = jnp.arange(most) * windows.stride
    used = starts < last + windows.stride
    return jnp.minimum(starts, last), used


def segment(
    model: Model,
    variables: dict[str, Any],
    batch: dict[str, Any],
    canvases: Canvases,
    *,
    flip: bool = False,
    windows: Windows | None = None,
) -> UInt8[Array, "b H W"]:
    """Predict the label maps of a batch of original images.

    Args:
        batch: of the examples of `transforms.EvalExample`.
        flip: average with the predictions for flipped images.
        windows: None for whole images.
    """
    run = partial(_segment_rows, model, canvases=canvases, flip=flip, windows=windows)
    inputs = {name: batch[name] for name in IMAGE_KEYS}
    if len(canvases.images) == 1:
        return run(variables, inputs)

    def one_by_one(rows, variables):
        return lax.map(lambda row: run(variables, jax.tree.map(lambda x: x[None], row))[0], rows)

    # Every device chooses the canvas of its own images.
    return map_rows(one_by_one, inputs, replicated=(variables,))


def _segment_rows(model, variables, batch, *, canvases, flip, windows):
    def of_shape(shapes):
        logits = compute_logits(model, variables, batch, shapes, flip=flip, windows=windows)
        return label_images(logits, batch, shapes, canvases.original, flip=flip)

    if len(canvases.images) == 1:
        return of_shape(canvases.images[0])
    return lax.switch(batch["shape"][0], [partial(of_shape, shapes) for shapes in canvases.images])


def _passes(shapes: Sequence[Size], flip: bool) -> list[tuple[int, Size, bool]]:
    """Return scale, canvas and flip of each forward pass."""
    return [
        (scale, canvas, flipped)
        for scale, canvas in enumerate(shapes)
        for flipped in ((False, True) if flip else (False,))
    ]


def compute_logits(
    model: Model,
    variables: dict[str, Any],
    batch: dict[str, Any],
    shapes: Sequence[Size],
    *,
    flip: bool,
    windows: Windows | None,
) -> list[Float[Array, "b _ _ k"]]:
    """Compute the logits of a batch of images of one shape, in one array for each scale and flip.

    Args:
        shapes: the canvas of each scale.
    """
    found = []
    for scale, canvas, flipped in _passes(shapes, flip):
        sizes = batch["sizes"][f"scale_{scale}"]
        images = _read_canvas(batch["images"][f"scale_{scale}"], canvas, model.in_chans)
        images = blank_outside(model.input_spec.normalize(images), sizes)
        images = jax.vmap(_flip_within)(images, sizes) if flipped else images
        found.append(canvas_logits(model, variables, images, sizes, windows))
    return found


def label_images(
    logits: Sequence[Float[Array, "b _ _ k"]],
    batch: dict[str, Any],
    shapes: Sequence[Size],
    canvas: Size,
    corner: Corner = (0, 0),
    *,
    flip: bool,
) -> UInt8[Array, "b H W"]:
    """Predict label maps from the results of `compute_logits`, as `predict_labels` for each image."""
    passes = _passes(shapes, flip)

    def predict(logits, sizes, original):
        maps = [
            Map(of_pass, its_canvas, sizes[f"scale_{scale}"], flipped)
            for of_pass, (scale, its_canvas, flipped) in zip(logits, passes, strict=True)
        ]
        return predict_labels(maps, original, canvas, corner)

    return jax.vmap(predict)(logits, batch["sizes"], batch["original"])


def _read_canvas(pixels, canvas, channels):
    """Return the images in a canvas, which are the beginnings of buffers if there are several shapes."""
    if pixels.ndim == 4:
        return pixels
    count = canvas[0] * canvas[1] * channels
    return pixels[:, :count].reshape(len(pixels), *canvas, channels)


def _flip_within(image, size):
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(columns < size[1], size[1] - 1 - columns, columns)]
