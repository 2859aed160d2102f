"""Effective receptive fields: which pixels the center of a feature map depends on, and how strongly.

References: Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, 2016; the
contributions and their areas, Ding et al., Scaling Up Your Kernels to 31x31, 2022.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from mambaout_jax.data import DataError
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model, cpu_compiler_options, create_model
from mambaout_jax.pages.figures import GREY, INK
from mambaout_jax.process import write_bytes_atomically
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import exact_model, restore_run
from mambaout_jax.tasks.api import Labels
from mambaout_jax.tasks.eval_images import eval_image_transform, is_turned_upright
from mambaout_jax.words import count

# Shares of the contributions whose areas are reported, as by Ding et al.
SHARES = (0.2, 0.3, 0.5, 0.99)
_BATCH = 4
# Contributions that are this much smaller than the largest, in powers of ten, are drawn like zero.
DECADES = 4


# Returns a number of normalized images for a model with labels.
ImagesOf = Callable[[Model, Labels, int], Float[np.ndarray, "b h w c"]]


class ReceptiveField(NamedTuple):
    """The effective receptive field of one model.

    Args:
        source: the name of the model or the path of its workdir.
        model: the name of the model.
        weights: what the weights are, in words.
        stage: index of the feature map, from 0.
        num_images: number of images.
        contributions: share of each pixel, (height, width); the sum is 1.
    """

    source: str
    model: str
    weights: str
    stage: int
    num_images: int
    contributions: Float[np.ndarray, "h w"]

    def areas(self) -> dict[str, float]:
        """Return the area of the smallest square with each share of the contributions, as a share of the image."""
        return {f"{share:g}": smallest_area(self.contributions, share) for share in SHARES}

    def decades(self) -> Float[np.ndarray, "h w"]:
        """Return the contributions to draw: the decimal logarithm of their ratio to the largest, at least -4."""
        return np.log10(np.maximum(self.contributions / self.contributions.max(), 10.0**-DECADES))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the contributions as JSON values."""
        height, width = self.contributions.shape
        fields = {name: getattr(self, name) for name in ("source", "model", "weights", "num_images")}
        return {**fields, "stage": self.stage + 1, "height": height, "width": width, "areas": self.areas()}


def measure(
    source: str,
    *,
    stage: int | None = None,
    num_images: int = 16,
    img_size: tuple[int, int] | None = None,
    images_of: ImagesOf | None = None,
) -> ReceptiveField:
    """Measure the effective receptive field of the center of a feature map.

    The contribution of a pixel is the positive part of the derivative of the sum of the map's positive values at its
    center, summed over channels and averaged over images.

    Args:
        source: the workdir of a run, or the name of a model, whose weights are then random.
        stage: index of the feature map; None for the last.
        num_images: number of images.
        img_size: (height, width); None for the model's own.
        images_of: returns the images; None for noise.

    Raises:
        RunError, ModelError: the source, the stage or the size is invalid.
    """
    model, variables, labels, weights = _load(source, img_size)
    maps = len(model.feature_info)
    stage = maps - 1 if stage is None else stage
    if not 0 <= stage < maps:
        raise RunError(f"stage is {stage + 1}, but {model.name} has {count(maps, 'feature map')}; expected 1 to {maps}")

    derivative = center_derivative(model)
    images = (images_of or _noise)(model, labels, num_images)
    batches = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    parts = (derivative(variables, batch, (stage,) * len(batch)) for batch in batches)
    return ReceptiveField(source, model.name, weights, stage, len(images), contributions(parts, source))


def center_derivative(model: Model) -> Callable[..., Float[Array, "b h w c"]]:
    """Return a function of variables, normalized images and a stage for each image, as a tuple.

    It computes the derivative, by the image, of the sum of the positive values at the center of its feature map, and is
    compiled once for each number of images and each tuple.
    """

    def center(images, variables, stages):
        maps = model.features(variables, images)
        rows = [maps[stage][row] for row, stage in enumerate(stages)]
        return sum(jax.nn.relu(row[row.shape[0] // 2, row.shape[1] // 2]).sum() for row in rows)

    gradient = jax.jit(jax.grad(center), static_argnums=2, compiler_options=cpu_compiler_options())
    return lambda variables, images, stages: gradient(jnp.asarray(images), variables, stages)


def contributions(derivatives: Iterable[Float[Array, "b h w c"]], source: str) -> Float[np.ndarray, "h w"]:
    """Return the share of each pixel in the positive parts of derivatives, summed over channels and images.

    Raises:
        RunError: they are zero or not finite.
    """
    total = sum(np.maximum(np.asarray(part), 0).sum((0, 3), dtype=np.float64) for part in derivatives)
    if not (np.isfinite(total).all() and total.any()):
        raise RunError(f"the gradient of {source} is zero or not finite; measure other weights or another stage")
    return total / total.sum()


def smallest_area(contributions: Float[np.ndarray, "h w"], share: float) -> float:
    """Return the area of the smallest square with a share of all contributions, as a share of the whole area.

    The center of the square is the median row and column of the contributions: the pixels below the center of a map are
    not always in the center of the image, because strided convolutions are padded on one side.
    """
    height, width = contributions.shape
    row, column = (int(np.searchsorted(contributions.sum(axis).cumsum(), contributions.sum() / 2)) for axis in (1, 0))
    for half in range(max(height, width)):
        top, left = max(0, row - half), max(0, column - half)
        inside = contributions[top : row + half + 1, left : column + half + 1]
        if inside.sum() >= share * contributions.sum():
            break
    return inside.size / contributions.size


def draw(fields: Sequence[ReceptiveField], path: Path) -> None:
    """Draw receptive fields side by side, in the logarithm of contributions, into a PNG.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(2.6 * len(fields) + 0.3, 3.2), layout="constrained")
    for axes, field in zip(np.atleast_1d(figure.subplots(1, len(fields))), fields, strict=True):
        axes.imshow(field.decades(), cmap="viridis", vmin=-DECADES, vmax=0)
        axes.set_axis_off()
        axes.set_title(f"{Path(field.source).name}\nstage {field.stage + 1}", fontsize=9, color=INK)
        half = f"half of it in {field.areas()['0.5']:.1%} of the area"
        axes.text(0.5, -0.04, half, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=GREY)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, file.getvalue())
    except OSError as error:
        raise_machine_fault(error, path, to_write=True)
        raise RunError(f"{path} cannot be written ({reason(error)}); use another --out") from error


def _load(source: str, img_size: tuple[int, int] | None) -> tuple[Model, dict[str, Any], Labels, str]:
    if not _is_path(source):
        model = create_model(source, img_size=img_size)
        return model, model.init(jax.random.key(0)), {}, "random"
    run = restore_run(source)
    return *exact_model(run, img_size), run.labels, f"{run.weights}, step {run.step}"


def _is_path(source: str) -> bool:
    return "/" in source or Path(source).is_dir()


def _noise(model: Model, labels: Labels, number: int) -> Float[np.ndarray, "b h w c"]:
    shape = (number, *model.input_spec.size, model.in_chans)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def images_from(files: Sequence[str]) -> ImagesOf:
    """Return the function `images_of` of `measure` for image files, of which the first are taken.

    It raises RunError for more images than files, and DataError if a file cannot be read or decoded.
    """

    def images_of(model: Model, labels: Labels, number: int) -> Float[np.ndarray, "b h w c"]:
        if number > len(files):
            raise RunError(f"--num-images is {number}, but --images has {count(len(files), 'image')}")
        transform = eval_image_transform(model, exif_orientation=is_turned_upright(labels))
        pixels = np.stack([transform(_read(file)) for file in files[:number]])
        return np.asarray(model.input_spec.normalize(jnp.asarray(pixels)))

    return images_of


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise_machine_fault(error, file)
        raise DataError(f"{file}: {reason(error)}") from error
