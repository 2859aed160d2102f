"""Effective receptive fields: which pixels the center of a feature map depends on, and how strongly.

References: Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, 2016; the
contributions and their areas, Ding et al., Scaling Up Your Kernels to 31x31, 2022.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from mambaout_jax.data import DataError
from mambaout_jax.data.eval_transform import EvalTransform
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model, cpu_compiler_options, create_model
from mambaout_jax.pages.figures import GREY, INK
from mambaout_jax.process import write_bytes_atomically
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import restore_run
from mambaout_jax.weights import resample_variables
from mambaout_jax.words import count

# Shares of the contributions whose areas are reported, as by Ding et al.
SHARES = (0.2, 0.3, 0.5, 0.99)
_BATCH = 4
# Contributions that are this much smaller than the largest are drawn like zero.
_DECADES = 4


class ReceptiveField(NamedTuple):
    """The effective receptive field of one model.

    Args:
        source: the name of the model or the path of its workdir.
        model: the name of the model.
        weights: what the weights are, in words.
        stage: index of the feature map, from 0.
        contributions: share of each pixel, (height, width); the sum is 1.
    """

    source: str
    model: str
    weights: str
    stage: int
    contributions: Float[np.ndarray, "h w"]

    def areas(self) -> dict[str, float]:
        """Return the area of the smallest square with each share of the contributions, as a share of the image."""
        return {f"{share:g}": smallest_area(self.contributions, share) for share in SHARES}

    def to_json(self) -> dict[str, Any]:
        """Return everything but the contributions as JSON values."""
        height, width = self.contributions.shape
        fields = {name: getattr(self, name) for name in ("source", "model", "weights", "stage")}
        return {**fields, "height": height, "width": width, "areas": self.areas()}


def measure(
    source: str,
    *,
    stage: int | None = None,
    num_images: int = 16,
    img_size: tuple[int, int] | None = None,
    images_of: Callable[[Model, int], Float[np.ndarray, "b h w c"]] | None = None,
) -> ReceptiveField:
    """Measure the effective receptive field of the center of a feature map.

    The contribution of a pixel is the positive part of the derivative of the sum of the map's positive values at its
    center, summed over channels and averaged over images.

    Args:
        source: the workdir of a run, or the name of a model, whose weights are then random.
        stage: index of the feature map; None for the last.
        num_images: number of images.
        img_size: (height, width); None for the model's own.
        images_of: returns a number of normalized images for a model; None for noise.

    Raises:
        RunError, ModelError: the source, the stage or the size is invalid.
    """
    model, variables, weights = _load(source, img_size)
    maps = len(model.feature_info)
    stage = maps - 1 if stage is None else stage
    if not 0 <= stage < maps:
        maps = count(maps, "feature map")
        raise RunError(f"--stage is {stage}, but {model.name} has {maps}; expected 0 to {len(model.feature_info) - 1}")

    def center(images):
        feature_map = model.features(variables, images)[stage]
        _, height, width, _ = feature_map.shape
        return jax.nn.relu(feature_map[:, height // 2, width // 2]).sum()

    gradient = jax.jit(jax.grad(center), compiler_options=cpu_compiler_options())
    images = (images_of or _noise)(model, num_images)
    total = np.zeros(images.shape[1:3])
    for start in range(0, len(images), _BATCH):
        total += np.maximum(gradient(jnp.asarray(images[start : start + _BATCH])), 0).sum((0, 3), dtype=np.float64)
    if not (np.isfinite(total).all() and total.any()):
        raise RunError(f"the gradient of {source} is zero or not finite; measure other weights or another --stage")
    return ReceptiveField(source, model.name, weights, stage, total / total.sum())


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
        scores = np.log10(np.maximum(field.contributions / field.contributions.max(), 10.0**-_DECADES))
        axes.imshow(scores, cmap="viridis", vmin=-_DECADES, vmax=0)
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


def _load(source: str, img_size: tuple[int, int] | None) -> tuple[Model, dict[str, Any], str]:
    if not _is_path(source):
        model = create_model(source, img_size=img_size, num_classes=0)
        return model, model.init(jax.random.key(0)), "random"
    run = restore_run(source)
    spec = {key: value for key, value in run.model.input_spec._asdict().items() if key != "size"}
    size = img_size or run.model.input_spec.size
    model = create_model(run.model.name, **{**run.model.options, **spec, "dtype": "float32", "img_size": size})
    variables = resample_variables(model, run.variables, run.model.input_spec.size)
    return model, variables, f"{run.weights}, step {run.step}"


def _is_path(source: str) -> bool:
    return "/" in source or Path(source).is_dir()


def _noise(model: Model, number: int) -> Float[np.ndarray, "b h w c"]:
    shape = (number, *model.input_spec.size, model.in_chans)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def images_from(files: Sequence[str]) -> Callable[[Model, int], Float[np.ndarray, "b h w c"]]:
    """Return the function `images_of` of `measure` for image files, of which the first are taken.

    It raises DataError if a file cannot be read or decoded.
    """

    def images_of(model: Model, number: int) -> Float[np.ndarray, "b h w c"]:
        spec = model.input_spec
        transform = EvalTransform(spec.size, model.in_chans, spec.crop_pct, spec.crop_mode, spec.interpolation)
        return np.asarray(spec.normalize(jnp.asarray(np.stack([transform(_read(file)) for file in files[:number]]))))

    return images_of


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise_machine_fault(error, file)
        raise DataError(f"{file}: {reason(error)}") from error
