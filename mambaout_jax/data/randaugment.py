"""RandAugment on uint8 arrays (h, w, c), c = 1 or 3.

Color operations give the same pixels as Pillow, most of them by lookup tables. Geometric operations use Pillow itself
(`affine_pillow`) or OpenCV (`affine_opencv`, which is faster). Operations are drawn first and applied afterwards, so
that tests can set level and sign.

There are two sets of fifteen operations, which differ in six: in `INCREASING` (timm's "inc1") their strength increases
with the level; in `PLAIN` posterize and solarize are weaker at higher levels, and the factor of color operations rises
from 0.1 to 1.9. A factor of 1 leaves the image unchanged.

Reference: Cubuk et al., "RandAugment" (2019), with the levels of timm 0.6.11.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from mambaout_jax.data.arguments import FILL, INTERPOLATIONS
from mambaout_jax.data.errors import DataError

# Decoding already runs in one process per core, in which OpenCV threads would only compete. Every worker process
# imports this module with its transform.
cv2.setNumThreads(0)

MAX_LEVEL = 10.0
LUMA = np.array([[19595, 38470, 7471, 2**15]], np.float32) / 2**16  # Pillow's weights, plus 0.5 for rounding
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # ImageFilter.SMOOTH
LINEAR_AND_CUBIC = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
PARTS = {  # name -> field, type, min, max, description
    "m": ("magnitude", int, 0, 10, "an integer from 0 to 10"),
    "n": ("num_ops", int, 1, 15, "an integer from 1 to 15"),
    "p": ("prob", float, 0, 1, "from 0 to 1"),
    "mstd": ("magnitude_std", float, 0, 100, "from 0 to 100"),
    "inc": ("increasing", int, 0, 1, "0, or 1 if the strength of every operation grows with the magnitude"),
}

PART = re.compile(r"([a-z]+)(\d+(?:\.\d+)?)")
RECIPE = "rand-m9-mstd0.5-inc1"

Matrix = tuple[float, float, float, float, float, float]
Affine = Callable[[np.ndarray, Matrix, str, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on an image.

    Args:
        level: strength from 0 to 10, negative for the opposite direction of a signed operation.
        interpolation: "bilinear" or "bicubic", for geometric operations.
    """

    name: str
    level: float
    interpolation: str = "bilinear"


def apply(image: np.ndarray, operation: Operation, affine: Affine) -> np.ndarray:
    """Apply one operation to a uint8 image (h, w, c).

    Args:
        affine: `affine_pillow` or `affine_opencv`.
    """
    if operation.name in VALUES:
        return VALUES[operation.name](image, operation.level)
    height, width, channels = image.shape
    matrix = MATRICES[operation.name](operation.level / MAX_LEVEL, width, height)
    return affine(image, matrix, operation.interpolation, FILL[channels])


def affine_pillow(image: np.ndarray, matrix: Matrix, interpolation: str, fill: tuple[int, ...]) -> np.ndarray:
    """Apply an affine transform with Pillow: the output at (x, y) is the input at (a x + b y + c, d x + e y + f).

    Coordinates are relative to pixel corners: the center of the first pixel is at (0.5, 0.5).
    """
    height, width, channels = image.shape
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    color = fill if channels == 3 else fill[0]
    kind = Image.Transform.AFFINE
    moved = picture.transform((width, height), kind, matrix, INTERPOLATIONS[interpolation], fillcolor=color)
    return np.asarray(moved).reshape(image.shape)


def affine_opencv(image: np.ndarray, matrix: Matrix, interpolation: str, fill: tuple[int, ...]) -> np.ndarray:
    """Apply an affine transform with OpenCV, equal to `affine_pillow` within 1 for bilinear interpolation.

    Pillow truncates fractions, OpenCV rounds them. Their cubic filters differ: the free parameter is -0.75 in OpenCV
    and -1 in Pillow, a difference of a few gray levels at edges and in noise.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    center_matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    flags = LINEAR_AND_CUBIC[interpolation] | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, center_matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    # Filled afterwards: OpenCV would blend a constant border into neighboring pixels, which Pillow does not.
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    u, v = a * x + (b * y + c), d * x + (e * y + f)
    outside = (u < 0) | (u >= width) | (v < 0) | (v >= height)
    filled = cv2.merge([np.full((height, width), value, np.uint8) for value in fill])
    return cv2.copyTo(filled, outside.view(np.uint8), moved).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A distribution of operations, drawn with replacement and applied with probability `prob`, each at its own level.

    Args:
        magnitude: mean level, from 0 to 10.
        magnitude_std: standard deviation of the level, which is clipped to [0, 10].
        increasing: draw from the operations `INCREASING`, as timm does with "inc1", instead of `PLAIN`.
    """

    num_ops: int = 2
    magnitude: float = MAX_LEVEL
    magnitude_std: float = 0.0
    prob: float = 0.5
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Build from timm's notation, such as "rand-m9-mstd0.5-inc1"; every part but the first is optional.

        Raises:
            DataError: a part is unknown, repeated or out of range.
        """
        first, *parts = text.split("-")
        if first != "rand":
            raise _parse_error(text, f"it starts with {first!r}, not 'rand'")
        numbers = {}
        for part in parts:
            match = PART.fullmatch(part)
            if match is None or match[1] not in PARTS:
                raise _parse_error(text, f"part {part!r} is unknown")
            name, number = match.groups()
            field, kind, low, high, description = PARTS[name]
            if (kind is int and "." in number) or not low <= float(number) <= high:
                raise _parse_error(text, f"{name} is {number}; expected {description}")
            if field in numbers:
                raise _parse_error(text, f"{name} is repeated")
            numbers[field] = kind(number)
        return cls(**numbers | {"increasing": bool(numbers.get("increasing"))})

    def __call__(self, image: np.ndarray, rng: np.random.Generator, affine: Affine = affine_pillow) -> np.ndarray:
        """Draw operations and apply them to a uint8 image (h, w, c); the result has the same shape.

        Args:
            affine: `affine_pillow` or `affine_opencv`.
        """
        for operation in self.draw(rng):
            image = apply(image, operation, affine)
        return image

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draw the operations for one image; the number of random draws does not depend on their outcome."""
        names, operations = INCREASING if self.increasing else PLAIN, []
        for _ in range(self.num_ops):
            name = names[rng.integers(len(names))]
            level = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), MAX_LEVEL)
            applied, negative, bicubic = rng.random(3) < (self.prob, 0.5, 0.5)
            if applied:
                operations.append(Operation(name, -level if negative else level, "bicubic" if bicubic else "bilinear"))
        return operations


def _parse_error(text: str, what: str) -> DataError:
    known = ", ".join(f"{name} ({description})" for name, (*_, description) in PARTS.items())
    return DataError(
        f"auto_augment is {text!r}: {what}; the nearest is {_nearest(text)!r}, and the known parts are {known}"
    )


def _nearest(text: str) -> str:
    """Return the string of this notation that is nearest to one of timm's: its valid parts."""
    first, *parts = text.split("-")
    if first != "rand":
        return RECIPE
    kept = {}
    for part in parts:
        match = PART.fullmatch(part)
        if match and match[1] in PARTS:
            _, kind, low, high, _ = PARTS[match[1]]
            if match[1] != "mstd" or float(match[2]) <= high:  # timm draws from a uniform distribution above 100
                kept[match[1]] = f"{match[1]}{kind(min(max(float(match[2]), low), high)):g}"
    return "-".join(["rand", *kept.values()])


def _rotation(strength: float, width: int, height: int) -> Matrix:
    # Around the center, with the operations and the rounding of Image.rotate.
    angle = -math.radians((strength * 30.0) % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + 0.0 + x, -sin, cos, -sin * -x + cos * -y + 0.0 + y


MATRICES: dict[str, Callable[[float, int, int], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda strength, width, height: (1, strength * 0.3, 0, 0, 1, 0),
    "ShearY": lambda strength, width, height: (1, 0, 0, strength * 0.3, 1, 0),
    "TranslateXRel": lambda strength, width, height: (1, 0, strength * 0.45 * width, 0, 1, 0),
    "TranslateYRel": lambda strength, width, height: (1, 0, 0, 0, 1, strength * 0.45 * height),
}


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    # Table (256,) for all channels, or (c, 256).
    if table.ndim == 2:
        table = table.T[None] if len(table) > 1 else table[0]
    return cv2.LUT(image, np.ascontiguousarray(table, np.uint8)).reshape(image.shape)


def _blend(base: np.ndarray, values: np.ndarray, factor: float) -> np.ndarray:
    # Pillow extrapolates in float32 and truncates.
    base, mixed = base.astype(np.float32), values.astype(np.float32)
    mixed -= base
    mixed *= np.float32(factor)
    mixed += base
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def _scaled_level(level: float, whole: int) -> int:
    return int(abs(level) / MAX_LEVEL * whole)


def _enhance_factor(level: float) -> float:
    return abs(level) / MAX_LEVEL * 1.8 + 0.1


def _increasing_enhance_factor(level: float) -> float:
    return max(0.1, 1.0 + level / MAX_LEVEL * 0.9)


def _gray(image: np.ndarray) -> np.ndarray:
    # Exact in float32: every term is a multiple of 2**-16 and the sum stays below 2**8.
    return image[..., 0] if image.shape[-1] == 1 else cv2.transform(image.astype(np.float32), LUMA).astype(np.uint8)


def _autocontrast(image: np.ndarray, level: float) -> np.ndarray:
    tables = np.tile(np.arange(256.0), (image.shape[-1], 1))
    for table, low, high in zip(tables, image.min(0).min(0).tolist(), image.max(0).max(0).tolist(), strict=True):
        if low < high:
            table *= 255.0 / (high - low)
            table += -low * (255.0 / (high - low))
    return _look_up(image, tables.clip(0, 255))


def _equalize(image: np.ndarray, level: float) -> np.ndarray:
    tables = np.tile(np.arange(256), (image.shape[-1], 1))
    for channel, table in enumerate(tables):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = int(counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        if step:
            table[:] = (step // 2 + counts.cumsum() - counts) // step
    return _look_up(image, tables.clip(0, 255))


def _posterize(image: np.ndarray, bits: int) -> np.ndarray:
    # 0 bits give a black image.
    return image & np.uint8(256 - 2 ** (8 - bits))


def _solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    values = np.arange(256)
    return _look_up(image, np.where(values < threshold, values, 255 - values))


def _solarize_add(image: np.ndarray, level: float) -> np.ndarray:
    values = np.arange(256)
    return _look_up(image, np.where(values < 128, values + _scaled_level(level, 110), values))


def _color(image: np.ndarray, factor: float) -> np.ndarray:
    return image if image.shape[-1] == 1 else _blend(cv2.merge([_gray(image)] * 3), image, factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    gray = _gray(image)
    mean = int(cv2.sumElems(gray)[0] / gray.size + 0.5)
    return _look_up(image, _blend(np.uint8(mean), np.arange(256), factor))


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(image, _blend(np.uint8(0), np.arange(256), factor))


def _sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    smooth = image.copy()  # edges are not smoothed
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH).reshape(image.shape)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


VALUES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda image, level: ~image,
    "Posterize": lambda image, level: _posterize(image, _scaled_level(level, 4)),
    "PosterizeIncreasing": lambda image, level: _posterize(image, 4 - _scaled_level(level, 4)),
    "Solarize": lambda image, level: _solarize(image, _scaled_level(level, 256)),
    "SolarizeIncreasing": lambda image, level: _solarize(image, 256 - _scaled_level(level, 256)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, level: _color(image, _enhance_factor(level)),
    "ColorIncreasing": lambda image, level: _color(image, _increasing_enhance_factor(level)),
    "Contrast": lambda image, level: _contrast(image, _enhance_factor(level)),
    "ContrastIncreasing": lambda image, level: _contrast(image, _increasing_enhance_factor(level)),
    "Brightness": lambda image, level: _brightness(image, _enhance_factor(level)),
    "BrightnessIncreasing": lambda image, level: _brightness(image, _increasing_enhance_factor(level)),
    "Sharpness": lambda image, level: _sharpness(image, _enhance_factor(level)),
    "SharpnessIncreasing": lambda image, level: _sharpness(image, _increasing_enhance_factor(level)),
}
OPERATIONS = (*VALUES, *MATRICES)
PLAIN = tuple(name for name in OPERATIONS if not name.endswith("Increasing"))
INCREASING = tuple(name for name in OPERATIONS if f"{name}Increasing" not in VALUES)
