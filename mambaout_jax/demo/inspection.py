"""What a trained model computes from one picture: prediction, feature maps and receptive fields, as pictures."""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from mambaout_jax.analyze.receptive_field import DECADES, ReceptiveField, center_derivative, contributions
from mambaout_jax.data import DataError
from mambaout_jax.models import Model, cpu_compiler_options
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import exact_model, restore_run
from mambaout_jax.tasks.api import Prediction, stack_examples
from mambaout_jax.tasks.eval_images import eval_image_transform, is_turned_upright
from mambaout_jax.words import count, listed

# The numbers of classes and of channels that are shown.
NUM_CLASSES = 5
NUM_CHANNELS = 16
# Small maps are enlarged to at least this number of pixels a side, so that browsers do not blur them.
_SIDE = 256
_GAP = 2
_COLORS = mpl.colormaps["viridis"]
# Largest side of a picture of a prediction, in pixels.
MAX_SHOWN = 1024
_KINDS = {".png": "png", ".jpg": "jpeg"}


class Row(NamedTuple):
    """A line of a prediction.

    Args:
        text: the class, or the whole line.
        share: a probability, or a share of the pixels; None if the line has none.
        color: color of the class in pictures, as #rrggbb; None if it has none.
    """

    text: str
    share: float | None = None
    color: str | None = None


class Picture(NamedTuple):
    """An encoded picture and its caption."""

    content: bytes
    caption: str
    kind: Literal["png", "jpeg"] = "png"

    @property
    def url(self) -> str:
        """Return the picture as the source of an HTML element."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


class Inspection(NamedTuple):
    """What is shown of one model.

    Args:
        name: name of the model.
        folder: name of the folder of its run.
        rows: the most confident parts of a prediction, if any.
        pictures: lines of pictures.
    """

    name: str
    folder: str
    rows: list[Row]
    pictures: list[list[Picture]]


class Inspector:
    """The model of a workdir, for one picture at a time.

    Every program is compiled once, for the input size of the model. The prediction is that of the command `predict`;
    feature maps and receptive fields are computed in float32 from the crop that an evaluation of a classifier sees.

    Args:
        workdir: a run or imported weights.
        weights: "ema" or "raw"; None for "ema" if the run has an average, else "raw".

    Raises:
        RunError: the workdir has no run or no such weights.
    """

    def __init__(self, workdir: str, weights: str | None = None):
        self._run = run = restore_run(workdir, weights)
        self._workdir, self._folder = workdir, Path(workdir).name or workdir
        self._predictor = run.task.predictor(run.model, run.labels)
        self._model, self._variables = exact_model(run)
        self._transform = eval_image_transform(self._model, exif_orientation=is_turned_upright(run.labels))
        self._colors = run.task.class_colors(run.class_names or ())
        self._features = jax.jit(self._model.features, compiler_options=cpu_compiler_options())
        self._derivative = center_derivative(self._model)

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self._model.name

    @property
    def license_notice(self) -> str | None:
        """Return a sentence about a license that forbids commercial use of the weights; None for any other."""
        return self._run.license_notice

    def describe(self) -> str:
        """Return the folder, the size of the model, its selective scans and its weights in a line."""
        height, width = self._model.input_spec.size
        facts = [
            self._folder,
            f"{self._model.num_params / 1e6:.1f} M parameters",
            f"{height}x{width} px",
            _describe_scans(self._model),
            f"{self._run.weights}, step {self._run.step}",
        ]
        return " · ".join(facts)

    def predict(self, image: bytes) -> Inspection:
        """Predict an encoded image: the most confident classes, and pictures of tasks that have them.

        Raises:
            DataError: the image cannot be decoded.
            RunError: the prediction is not finite, probably because the run diverged.
        """
        try:
            example = self._predictor.prepare(image)
        except ValueError as error:  # DataError, or one of a task of another package
            raise DataError(str(error)) from error
        (found,) = self._predictor(self._run.variables, stack_examples(self._predictor, [example], 1))
        if isinstance(found, str):
            raise RunError(f"{self._workdir}: {found}")
        pictures = _pictures_of(found.files(image))
        return Inspection(self.name, self._folder, rows_of(found, self._colors), [pictures] if pictures else [])

    def feature_maps(self, image: bytes) -> Inspection:
        """Draw the magnitude of each feature map, the root mean square over channels, and the channels that vary most.

        Raises:
            DataError: the image cannot be decoded.
        """
        maps = [np.asarray(found[0], np.float32) for found in self._features(self._variables, self._input(image))]
        sizes = [f"stage {stage}: {found.shape[0]}x{found.shape[1]}" for stage, found in enumerate(maps, 1)]
        channels = [f"{min(NUM_CHANNELS, found.shape[2])} of {count(found.shape[2], 'channel')}" for found in maps]
        magnitudes = [_encode(draw(magnitude(found)), size) for found, size in zip(maps, sizes, strict=True)]
        sheets = [_encode(draw_channels(found), caption) for found, caption in zip(maps, channels, strict=True)]
        return Inspection(self.name, self._folder, [], [magnitudes, sheets])

    def receptive_fields(self, image: bytes) -> Inspection:
        """Draw the effective receptive field of the center of each feature map, for this image alone.

        Raises:
            DataError: the image cannot be decoded.
        """
        stages = tuple(range(len(self._model.feature_info)))
        # One copy of the image for each stage, so that one program computes all derivatives.
        images = self._input(image).repeat(len(stages), 0)
        derivatives = self._derivative(self._variables, images, stages)
        return Inspection(self.name, self._folder, [], [[self._field(stage, derivatives[stage]) for stage in stages]])

    def _input(self, image: bytes) -> Float[Array, "1 h w c"]:
        return self._model.input_spec.normalize(jnp.asarray(self._transform(image)[None]))

    def _field(self, stage: int, derivative: Float[Array, "h w c"]) -> Picture:
        try:
            shares = contributions([derivative[None]], self._workdir)
        except RunError:  # such as a black image can lead to
            return _encode(draw(np.zeros(derivative.shape[:2])), f"stage {stage + 1}: no gradient")
        field = ReceptiveField(self._workdir, self.name, self._run.weights, stage, 1, shares)
        caption = f"stage {stage + 1}: half in {field.areas()['0.5']:.1%} of the area"
        return _encode(draw(field.decades(), (-DECADES, 0)), caption)


def rows_of(prediction: Prediction, colors: Sequence[str] | None) -> list[Row]:
    """Return a row for each of the most confident parts of a prediction: its class, or its line of text.

    Args:
        colors: the color of each class in pictures; None for none.
    """

    def row(line: str, entry: Mapping[str, Any]) -> Row:
        share = entry.get("probability", entry.get("share"))
        if share is None or "class" not in entry:  # predictions of other tasks may have any entries
            return Row(line)
        index = entry.get("index", -1)
        color = colors[index] if colors and 0 <= index < len(colors) else None
        return Row(entry.get("description", entry["class"]), share, color)

    lines, entries = prediction.describe(NUM_CLASSES), prediction.to_json(NUM_CLASSES)
    return [row(line, entry) for line, entry in itertools.zip_longest(lines, entries, fillvalue={})]


def _describe_scans(model: Model) -> str:
    """Return the stages whose blocks have selective scans, in words."""
    stages = [str(stage) for stage, scan in enumerate(model.scan_info, 1) if scan.directions]
    if len(stages) in (0, len(model.scan_info)):
        return "SSM in all stages" if stages else "no SSM"
    return f"SSM in stage {listed(stages)}"


def magnitude(feature_map: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w"]:
    """Compute the root mean square of a feature map over its channels."""
    return np.sqrt(np.square(feature_map).mean(-1))


def draw(values: Float[np.ndarray, "h w"], span: tuple[float, float] | None = None) -> UInt8[np.ndarray, "y x 3"]:
    """Draw values in colors, with several pixels for each value of a small map.

    Args:
        span: the values of the first and the last color; None for the smallest and the largest value.
    """
    return _enlarge(_color(_scale(values, *(span or (values.min(), values.max())))))


def draw_channels(feature_map: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "y x 3"]:
    """Draw the channels that vary most over a feature map in a square, each in its own range.

    A map of one pixel varies only between channels, which then have one range.
    """
    height, width, channels = feature_map.shape
    axis = (0, 1) if height * width > 1 else None
    order = (-feature_map.var((0, 1))).argsort(kind="stable")[:NUM_CHANNELS]
    low, high = feature_map.min(axis, keepdims=True), feature_map.max(axis, keepdims=True)
    scaled = _scale(feature_map, low, high)[:, :, order]
    columns = math.ceil(math.sqrt(min(NUM_CHANNELS, channels)))
    factor = math.ceil(_SIDE / columns / max(height, width))
    tiles = [
        np.pad(_enlarge(_color(scaled[:, :, i]), factor), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
        for i in range(len(order))
    ]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    lines = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return np.vstack(lines)[:-_GAP, :-_GAP]


def _scale(values: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Return values as shares of a range; those of an empty range, and those that are not finite, are 0."""
    spread = np.where(high > low, high - low, 1)
    return np.nan_to_num((values - low) / spread, nan=0, posinf=0, neginf=0)


def _color(shares: np.ndarray) -> np.ndarray:
    return (255 * _COLORS(shares)[..., :3]).round().astype(np.uint8)


def _enlarge(pixels: np.ndarray, factor: int | None = None) -> np.ndarray:
    factor = factor or math.ceil(_SIDE / max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _encode(pixels: UInt8[np.ndarray, "y x 3"], caption: str) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue(), caption)


def _pictures_of(files: dict[str, bytes]) -> list[Picture]:
    """Return the pictures among the files of a prediction, by the ending of their names, such as "_overlay.jpg"."""
    return [
        Picture(_reduce(content), Path(ending).stem.strip("_"), _KINDS[Path(ending).suffix])
        for ending, content in files.items()
        if Path(ending).suffix in _KINDS
    ]


def _reduce(content: bytes) -> bytes:
    """Return an encoded picture of at most `MAX_SHOWN` pixels per side, in the same format."""
    with Image.open(io.BytesIO(content)) as image:
        if max(image.size) <= MAX_SHOWN:
            return content
        factor, file = MAX_SHOWN / max(image.size), io.BytesIO()
        size = [max(1, round(side * factor)) for side in image.size]
        # The pixels of label maps are numbers.
        filter = Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.BICUBIC
        image.resize(size, filter).save(file, image.format)
    return file.getvalue()
