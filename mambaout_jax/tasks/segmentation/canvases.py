"""The static sizes of evaluated images: a program is compiled for canvases of a few shapes, not for every image."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.images import Size, fit_size, round_up

# Aspect ratios, longer to shorter side, of the canvases of images of various sizes; the last one is that of the box.
ASPECT_RATIOS = (4 / 3, 2)
MIN_SIDE = 32


class Canvases(NamedTuple):
    """The static sizes of the images of a dataset.

    Args:
        images: for each shape of an image, from narrow to wide, the canvas of each scale.
        original: canvas of all original images.
    """

    images: tuple[tuple[Size, ...], ...]
    original: Size

    def shape_of(self, sizes: Sequence[Size]) -> int:
        """Return the first shape whose canvases fit an image, given its size at each scale."""
        for index, canvases in enumerate(self.images):
            if all(size[0] <= canvas[0] and size[1] <= canvas[1] for size, canvas in zip(sizes, canvases, strict=True)):
                return index
        raise ValueError(f"images of {sizes} exceed all canvases: {self.images}")

    def num_pixels(self, scale: int) -> int:
        """Return the pixels of the largest canvas of a scale."""
        return max(canvases[scale][0] * canvases[scale][1] for canvases in self.images)


@dataclasses.dataclass(frozen=True)
class EvalSizes:
    """The sizes of an image at each scale of an evaluation.

    Args:
        box: shorter and longer side of the box that images are resized into.
        scales: factors of the box, or of the original image.
        scale_of: "box" or "image".
        window: side of the windows that images are evaluated in; None for whole images.
        fixed: the only size that the model accepts; None for any size.

    Raises:
        TaskError: the model accepts one size only, and there are no windows of that size.
    """

    box: Size
    scales: tuple[float, ...]
    scale_of: str
    window: int | None
    fixed: Size | None

    def sizes(self, original: Size) -> list[Size]:
        """Return (height, width) of an image at each scale."""
        if self.scale_of == "image":
            return [tuple(max(1, int(side * scale + 0.5)) for side in original) for scale in self.scales]
        return [fit_size(original, self._box(scale)) for scale in self.scales]

    def canvases(self, size: Size | None, max_size: Size) -> Canvases:
        """Return the canvases of a dataset.

        Args:
            size: (height, width) of all images; None if they differ.
            max_size: largest height and largest width.

        Raises:
            TaskError: the model does not accept them.
        """
        if size is not None:
            shapes = (tuple(map(self._enlarge, self.sizes(size))),)
        elif self.scale_of == "image":
            shapes = (tuple(map(self._round_up, self.sizes(max_size))),)
        else:
            shapes = self._shapes()
        self._check(shapes)
        return Canvases(shapes, max_size)

    def canvases_of(self, batch: Mapping[str, Any]) -> Canvases:
        """Return the canvases of a batch of examples, from the shapes of its arrays."""
        images, original = list(batch["images"].values()), batch["label"].shape[1:]
        if images[0].ndim == 4:
            return Canvases((tuple(image.shape[1:3] for image in images),), original)
        return Canvases(self._shapes(), original)

    def _shapes(self) -> tuple[tuple[Size, ...], ...]:
        """Return the canvases of images of any size, each in both orientations."""
        shapes = []
        for ratio in (*ASPECT_RATIOS, None):
            wide = []
            for scale in self.scales:
                short, long = self._box(scale)
                wide.append(self._round_up((short, long if ratio is None else min(long, int(short * ratio + 1)))))
            shapes += [tuple(wide), tuple(size[::-1] for size in wide)]
        return tuple(dict.fromkeys(shapes))

    def _box(self, scale: float) -> Size:
        short, long = self.box
        return int(short * scale), int(long * scale)

    def _round_up(self, size: Size) -> Size:
        return self._enlarge(round_up(size))

    def _enlarge(self, size: Size) -> Size:
        return tuple(max(side, self.window or MIN_SIDE) for side in size)

    def _check(self, shapes: Sequence[Sequence[Size]]) -> None:
        if self.fixed is None:
            return
        needed = {(self.window, self.window)} if self.window else {size for sizes in shapes for size in sizes}
        if other := needed - {self.fixed}:
            height, width = min(other)
            advice = f"config.eval.window={self.fixed[0]}" if self.fixed[0] == self.fixed[1] else "a square img_size"
            raise TaskError(
                f"the model accepts images of {self.fixed[0]}x{self.fixed[1]} only, and the evaluation has "
                f"{height}x{width}; evaluate windows with {advice}"
            )
