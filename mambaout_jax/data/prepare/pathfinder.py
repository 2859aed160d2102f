"""The generated dataset `pathfinder`: are two dots joined by one of several dashed curves?

Reference: Linsley et al., Learning long-range spatial dependencies with horizontal gated recurrent units, 2018; at 32
to 128 px, Tay et al., Long Range Arena, 2020. The task is the same; the images are generated differently.

Images come in pairs that differ in little but the class. Both images of a pair have the same four endpoints, the same
directions of the curves at the endpoints, and dots on the same two endpoints. In "joined", one curve connects the two
dots and one the other endpoints; in "apart", each dot is connected to one of the other endpoints. All four curves, and
hence the curves of both classes, have the same distribution. Still, a curve between the dots is positioned differently,
relative to the line through the dots, than curves that lead away from them. Therefore a pair is used only if both
images can be drawn, and if its two main curves have nearly the same total length and total weight in both images, where
the weight depends on the position in the frame of the dots.

On held-out pairs, linear classifiers on the ink in 6 x 6 and 12 x 12 cells of that frame reach at most 56% at 32 px
(1,200 pairs), 54% at 64 px (1,500) and 53% at 128 px (600), where chance is 50%.

All arithmetic is on integers, and random numbers are raw words of Philox, a stream that NumPy guarantees to be stable,
so that an image has the same bytes on every machine.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

CLASSES = ("apart", "joined")
UNIT = 256  # units of length per pixel
FINE = 4  # subpixels per pixel and axis, for antialiasing
NUM_CANDIDATES, NUM_OTHERS = 2048, 256  # drawn at once: pairs, and distractor curves
NUM_POINTS = 20  # segments per curve, for computing distances
PAIRINGS = ([(0, 2), (1, 3)], [(0, 1), (2, 3)])  # curves between endpoints 0 to 3 (dots on 0 and 1): apart, joined
DOT_ORDERS = [(0, 1, 2, 3), (2, 3, 0, 1), (0, 2, 1, 3), (1, 3, 0, 2)]  # orders of the endpoints with the same curves
INK, DOT_INK = 170, 255
# Weight per length of a curve, by position relative to the midpoint between the dots: rows along the line through the
# dots, columns perpendicular to it, in quarters of their distance. Coefficients of a logistic regression that was
# fitted to classify candidates of all three sizes: no other linear function of these lengths separates the classes
# better.
POSITION_WEIGHTS = np.array([[5, 0, 0, -1], [-3, -4, -2, -1], [-18, -9, -4, -2], [-32, -13, -6, -3]])


@dataclass
class PathfinderConfig(tfds.core.BuilderConfig):
    """The parameters of the images of one size; lengths are in pixels.

    Args:
        num_curves: minimum and maximum number of curves.
        gap: minimum distance between curves.
        dash: length of dashes and of the gaps between them.
        thickness: thickness of dashes.
        dot: radius of dots.
    """

    side: int = 64
    num_train: int = 20_000
    num_validation: int = 2_000
    num_curves: tuple[int, int] = (3, 4)
    gap: float = 5.0
    dash: tuple[float, float] = (4.0, 2.0)
    thickness: float = 1.5
    dot: float = 2.0


@dataclass(frozen=True)
class Scene:
    """The geometry of one image, in units of 1/256 px.

    Args:
        curves: control points (x, y) of cubic Bezier curves, (k, 4, 2).
        dots: centers (x, y) of the dots, (2, 2); each is the first or last point of a curve.
    """

    curves: np.ndarray
    dots: np.ndarray


class Draws:
    """A stream of random integers, a function of the key alone."""

    def __init__(self, *key: int):
        self._words = np.random.Philox(key=np.array(key, np.uint64))

    def below(self, bound: int, *shape: int) -> np.ndarray:
        """Draw integers in [0, bound)."""
        return (self._words.random_raw(int(np.prod(shape))) % np.uint64(bound)).astype(np.int64).reshape(shape)


def make_pair(config: PathfinderConfig, split: int, pair: int) -> tuple[Scene, Scene]:
    """Draw the two scenes of one pair of a split, apart and joined."""
    draws = Draws(config.side << 8 | split, pair)
    low, high = config.num_curves
    num_others = low - 2 + int(draws.below(high - low + 1, 1)[0])
    while True:
        ends = _draw_ends(draws, config, NUM_CANDIDATES, 4)
        ends = ends[_are_convex(ends, config)]
        directions = _draw_directions(draws, config, *ends.shape[:2])
        fit = np.ones(len(ends), bool)
        for pairing in PAIRINGS:
            fit[fit] = _fits(_connect(ends[fit], directions[fit], pairing), config)
        # The dots may be on any two endpoints that are connected in one of the scenes.
        ends, directions = (x[fit][:, DOT_ORDERS].reshape(-1, 4, 2) for x in (ends, directions))
        for index in np.flatnonzero(_have_equal_weights(ends, directions, config)):
            pair_curves = [_connect(ends[[index]], directions[[index]], pairing)[0] for pairing in PAIRINGS]
            if (apart := _add_others(draws, config, pair_curves[0], num_others)) is None:
                continue
            if (joined := _add_others(draws, config, pair_curves[1], num_others)) is None:
                continue
            return Scene(apart, ends[index, :2]), Scene(joined, ends[index, :2])


def draw_scene(scene: Scene, config: PathfinderConfig) -> np.ndarray:
    """Render a scene as uint8 (side, side), white on black."""
    fine_side = config.side * FINE
    lines, dots = (np.zeros((fine_side, fine_side), bool) for _ in range(2))
    on, off = (int(length * UNIT) for length in config.dash)
    for curve in sample_points(scene.curves, 4 * config.side):
        along = np.concatenate([[0], np.cumsum(_lengths(np.diff(curve, axis=0)))])
        # Curves start and end with half a dash; dashes are stretched to fill the curve.
        periods = max(1, int(along[-1]) // (on + off))
        phase = (along * periods * (on + off) // along[-1] + on // 2) % (on + off)
        _stamp(lines, curve[phase < on], config.thickness / 2)
    _stamp(dots, scene.dots, config.dot)
    shades = [part.reshape(config.side, FINE, config.side, FINE).sum((1, 3)) * ink // FINE**2
              for part, ink in ((lines, INK), (dots, DOT_INK))]  # fmt: skip
    return np.maximum(*shades).astype(np.uint8)


def encode_gray(pixels: np.ndarray) -> bytes:
    """Encode a gray image of less than 64 KiB as an uncompressed PNG.

    Written without a library, because libraries split even uncompressed data differently.
    """
    height, width = pixels.shape
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each row starts with its filter type, 0 for none
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    stored += struct.pack(">I", zlib.adler32(rows))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", stored), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def sample_points(curves: np.ndarray, num: int) -> np.ndarray:
    """Compute `num` + 1 points of each curve: (..., 4, 2) to (..., num + 1, 2)."""
    t = np.arange(num + 1)
    weights = np.stack([(num - t) ** 3, 3 * (num - t) ** 2 * t, 3 * (num - t) * t**2, t**3], -1)
    # In float64, matrix products are fast, and exact because these integers stay below 2^53.
    return (weights.astype(np.float64) @ curves.astype(np.float64)).astype(np.int64) // num**3


class Pathfinder(tfds.core.GeneratorBasedBuilder):
    """The dataset `pathfinder`: two dots and several dashed curves; "joined" if a curve connects the dots."""

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS: ClassVar = [
        PathfinderConfig(name="32", side=32, num_curves=(3, 3), gap=4.0, dash=(2.5, 1.5), thickness=1.2, dot=1.7),
        PathfinderConfig(name="64"),
        PathfinderConfig(name="128", side=128, num_train=5_000, num_validation=1_000, num_curves=(3, 5), gap=8.0,
                         dash=(5.0, 2.5), thickness=1.8, dot=2.7),
    ]  # fmt: skip
    DEFAULT_BUILDER_CONFIG_NAME = "64"

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.side
        return tfds.core.DatasetInfo(
            builder=self,
            description="Are two dots joined by one of several dashed curves?",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(side, side, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config
        sizes = {"train": config.num_train, "validation": config.num_validation}
        return {name: self._generate_examples(split, sizes[name]) for split, name in enumerate(sizes)}

    def _generate_examples(self, split: int, num_images: int) -> Iterator[tuple[int, dict]]:
        for pair in range(num_images // 2):
            for label, scene in enumerate(make_pair(self.builder_config, split, pair)):
                image = encode_gray(draw_scene(scene, self.builder_config))
                yield 2 * pair + label, {"image": image, "label": label}


def _draw_ends(draws: Draws, config: PathfinderConfig, *shape: int) -> np.ndarray:
    margin = config.side * UNIT // 12
    return margin + draws.below(config.side * UNIT - 2 * margin, *shape, 2)


def _draw_directions(draws: Draws, config: PathfinderConfig, *shape: int) -> np.ndarray:
    """Draw the vectors from endpoints to the adjacent control points."""
    reach = config.side * UNIT * 2 // 5
    return draws.below(2 * reach, *shape, 2) - reach


def _are_convex(ends: np.ndarray, config: PathfinderConfig) -> np.ndarray:
    """Return which of n sets of endpoints (n, 4, 2) are convex and far apart, so that straight curves do not cross."""
    sides = [((ends[:, a] - ends[:, b]) ** 2).sum(-1) for pairing in PAIRINGS for a, b in pairing]
    # The polygon 0, 1, 3, 2 is convex if it turns in the same direction at each corner.
    ring = ends[:, [0, 1, 3, 2]]
    edges = np.roll(ring, -1, 1) - ring
    following = np.roll(edges, -1, 1)
    turns = np.sign(edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0])
    return (np.abs(turns.sum(1)) == 4) & (np.min(sides, 0) > (config.side * UNIT // 4) ** 2)


def _connect(ends: np.ndarray, directions: np.ndarray, pairing: list[tuple[int, int]]) -> np.ndarray:
    """Build the curves between endpoints, (n, k, 4, 2)."""
    controls = ends + directions
    return np.stack([np.stack([ends[:, a], controls[:, a], controls[:, b], ends[:, b]], 1) for a, b in pairing], axis=1)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    # IEEE square roots are rounded identically on every machine, and these integers are exact in float64.
    x, y = vectors[..., 0], vectors[..., 1]
    return np.sqrt((x * x + y * y).astype(np.float64)).astype(np.int64)


def _fits(curves: np.ndarray, config: PathfinderConfig) -> np.ndarray:
    """Return which of n pairs of curves (n, 2, 4, 2) can be drawn: well-shaped curves with a gap between them."""
    points = sample_points(curves, NUM_POINTS)
    fit = np.ones(len(curves), bool)
    for curve in (0, 1):
        fit[fit] = _are_well_shaped(points[fit, curve], config)
    fit[fit] = _are_separated(points[fit, 0], points[fit, 1], config)
    return fit


def _have_equal_weights(ends: np.ndarray, directions: np.ndarray, config: PathfinderConfig) -> np.ndarray:
    """Return in which of n pairs of scenes, with endpoints (n, 4, 2), the main curves have equal weight and length."""
    between = (ends[:, 1] - ends[:, 0])[:, None, None]
    squared = (between**2).sum(-1)
    totals = []
    for pairing in PAIRINGS:
        points = sample_points(_connect(ends, directions, pairing), NUM_POINTS)
        # Twice the vector from the first dot to the middle of each segment of a curve.
        vectors = points[:, :, 1:] + points[:, :, :-1] - 2 * ends[:, 0][:, None, None]
        along = np.abs((vectors * between).sum(-1) - squared) * 2 // squared
        away = np.abs(vectors[..., 0] * between[..., 1] - vectors[..., 1] * between[..., 0]) * 2 // squared
        last = len(POSITION_WEIGHTS) - 1
        near = (along <= last) & (away <= last)
        weights = POSITION_WEIGHTS[np.minimum(along, last), np.minimum(away, last)] * near
        lengths = _lengths(np.diff(points, axis=2))
        totals.append(np.stack([(weights * lengths).sum((1, 2)), 2 * lengths.sum((1, 2))]))
    # The bound does not depend on the distance of the dots: with a relative bound, joined curves would be longer.
    return (np.abs(totals[1] - totals[0]) <= config.side * UNIT // 6).all(0)


def _are_well_shaped(points: np.ndarray, config: PathfinderConfig) -> np.ndarray:
    """Return which curves (n, p, 2) stay inside the image, have a medium length, and do not approach themselves."""
    side, margin, gap = config.side * UNIT, config.side * UNIT // 12, int(config.gap * UNIT)
    along = np.cumsum(_lengths(np.diff(points, axis=-2)), -1)
    length = along[..., -1]
    fit = ((points >= margin) & (points <= side - margin)).all((-2, -1))
    fit &= (length >= side * 2 // 5) & (length <= side * 9 // 8)
    along = np.concatenate([np.zeros_like(along[..., :1]), along], -1)[fit]
    # Curves neither turn sharply nor return to themselves.
    min_distance = np.minimum(np.abs(along[:, :, None] - along[:, None]), 3 * gap) // 2
    fit[fit] = (_squared_distances(points[fit], points[fit]) >= min_distance**2).all((1, 2))
    return fit


def _are_separated(points: np.ndarray, others: np.ndarray, config: PathfinderConfig) -> np.ndarray:
    return (_squared_distances(points, others) > int(config.gap * UNIT) ** 2).all((1, 2))


def _squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    # x and y separately, because sums over an axis of two are slow.
    x, y = (points[:, :, None, axis] - others[:, None, :, axis] for axis in (0, 1))
    return x * x + y * y


def _add_others(draws: Draws, config: PathfinderConfig, curves: np.ndarray, count: int) -> np.ndarray | None:
    """Add `count` curves in free space; return None if there is not enough."""
    for _ in range(count):
        ends = _draw_ends(draws, config, NUM_OTHERS, 2)
        candidates = _connect(ends, _draw_directions(draws, config, NUM_OTHERS, 2), [(0, 1)])[:, 0]
        points = sample_points(candidates, NUM_POINTS)
        fit = _are_well_shaped(points, config)
        for curve in sample_points(curves, NUM_POINTS):
            fit[fit] = _are_separated(points[fit], np.broadcast_to(curve, points[fit].shape), config)
        if not fit.any():
            return None
        curves = np.concatenate([curves, candidates[np.argmax(fit)][None]])
    return curves


def _stamp(canvas: np.ndarray, points: np.ndarray, radius: float) -> None:
    """Set the subpixels whose centers are within `radius` pixels of a point."""
    cell, reach = UNIT // FINE, int(radius * UNIT)
    offsets = np.arange(-(reach // cell) - 1, reach // cell + 2)
    x, y = (points[:, axis, None] // cell + offsets for axis in (0, 1))
    x, y = (np.broadcast_to(grid, (len(points), len(offsets), len(offsets))) for grid in (x[:, None], y[:, :, None]))
    inside = (x * cell + cell // 2 - points[:, 0, None, None]) ** 2
    inside = inside + (y * cell + cell // 2 - points[:, 1, None, None]) ** 2 <= reach**2
    canvas[y[inside], x[inside]] = True
