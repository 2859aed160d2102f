"""Pathfinder's labels are correct, simple features do not predict them, and its bytes are reproducible."""

import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mambaout_jax.data import DataError
from mambaout_jax.data.decode import decode_image
from mambaout_jax.data.prepare import builders, prepare_dataset
from mambaout_jax.data.prepare.pathfinder import (
    UNIT,
    Pathfinder,
    PathfinderConfig,
    draw_scene,
    encode_gray,
    make_pair,
    sample_points,
)
from mambaout_jax.tasks.classification.source import open_source

CONFIGS = Pathfinder.builder_configs
TRAIN, VALIDATION = 0, 1
NUM_PAIRS = 400


@pytest.fixture(scope="module")
def pairs():
    """Return pairs of the smallest size, which are drawn in seconds."""
    return [make_pair(CONFIGS["32"], TRAIN, pair) for pair in range(NUM_PAIRS)]


@pytest.fixture
def small(monkeypatch):
    """Reduce the datasets to a few images."""
    for config in CONFIGS.values():
        monkeypatch.setattr(config, "num_train", 12)
        monkeypatch.setattr(config, "num_validation", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_dots_are_joined_exactly_if_solid_curves_connect_them(name):
    config = dataclasses.replace(CONFIGS[name], dash=(1.0, 0.0))
    for pair in range(12):
        for joined, scene in enumerate(make_pair(config, TRAIN, pair)):
            count, parts = cv2.connectedComponents((draw_scene(scene, config) > 0).astype(np.uint8), connectivity=8)
            first, second = (parts[tuple(dot[::-1] // UNIT)] for dot in scene.dots)
            assert first
            assert second
            assert (first == second) == joined
            assert count - 1 == len(scene.curves)  # no two curves touch


@pytest.mark.parametrize("name", CONFIGS)
def test_dashes_have_gaps_and_dots_are_the_brightest(name):
    config = CONFIGS[name]
    for scene in make_pair(config, TRAIN, 3):
        image = draw_scene(scene, config)
        solid = draw_scene(scene, dataclasses.replace(config, dash=(1.0, 0.0)))
        assert image.shape == (config.side, config.side)
        assert 0.4 < (image > 100).sum() / (solid > 100).sum() < 0.95
        assert cv2.connectedComponents((image == 255).astype(np.uint8))[0] - 1 == 2


@pytest.mark.nightly
def test_dots_are_on_endpoints_and_a_pair_shares_endpoints_and_directions(pairs):
    for apart, joined in pairs:
        assert np.array_equal(apart.dots, joined.dots)
        leaving = []
        for scene in (apart, joined):
            both_ways = np.concatenate([scene.curves[:2, :2], scene.curves[:2, :1:-1]])  # end, control point
            leaving.append(sorted(map(tuple, both_ways.reshape(4, 4).tolist())))
            ends = both_ways[:, 0].tolist()
            assert all(ends.count(dot) == 1 for dot in scene.dots.tolist())
        assert leaving[0] == leaving[1]


def test_curves_keep_their_gap_and_stay_inside():
    for config in CONFIGS.values():
        for scene in make_pair(config, VALIDATION, 5):
            points = sample_points(scene.curves, 300) / UNIT
            assert points.min() > config.side / 12 - 1
            assert points.max() < config.side * 11 / 12 + 1
            fewest, most = config.num_curves
            assert fewest <= len(points) <= most
            for index, one in enumerate(points):
                for other in points[:index]:
                    assert np.linalg.norm(one[:, None] - other, axis=-1).min() > 0.8 * config.gap


def statistics_of(scene, config):
    points = sample_points(scene.curves, 100) / config.side / UNIT
    lengths = np.sort(np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(1))
    chords = np.sort(np.linalg.norm(points[:, 0] - points[:, -1], axis=-1))
    dots = scene.dots / config.side / UNIT
    distance = np.linalg.norm(dots[0] - dots[1])
    ink = draw_scene(scene, config).mean()
    centre = points.mean((0, 1))
    return [*lengths, *chords, *dots.ravel(), distance, ink, *centre, points.std()]


def score_in_folds(features):
    """Return the accuracy of a linear classifier on held-out pairs."""
    labels, groups = np.tile([0, 1], NUM_PAIRS), np.repeat(np.arange(NUM_PAIRS), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return cross_val_score(model, np.array(features), labels, groups=groups, cv=GroupKFold(5)).mean()


@pytest.mark.nightly
def test_no_statistic_separates_the_classes(pairs):
    features = np.array([statistics_of(scene, CONFIGS["32"]) for pair in pairs for scene in pair])
    apart, joined = features[::2], features[1::2]
    error = features.std(0) * np.sqrt(2 / NUM_PAIRS)
    assert (np.abs(apart.mean(0) - joined.mean(0)) <= 4 * error).all()
    assert 0.44 < score_in_folds(features) < 0.56
    # Without the chords: with the distance of the dots, they reveal which endpoints are connected, the label.
    features = np.delete(features, [3, 4, 5], axis=1)
    products = features[:, :, None] * features[:, None]
    assert 0.44 < score_in_folds(products.reshape(len(features), -1)) < 0.56


@pytest.mark.nightly
@pytest.mark.parametrize("side", [4, 8, 16])
def test_no_linear_classifier_on_pixels_separates_the_classes(pairs, side):
    images = [draw_scene(scene, CONFIGS["32"]) for pair in pairs for scene in pair]
    features = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).ravel() for image in images]
    assert 0.44 < score_in_folds(features) < 0.56


def turned(image, dots, num_squares, reach):
    """Return the ink in cells of the frame of the dots, which extends that many dot distances from the midpoint."""
    along = (dots[1] - dots[0]) / UNIT
    across = np.array([-along[1], along[0]])
    fine = 4 * num_squares
    to_image = np.stack([along, across, dots.mean(0) / UNIT - reach * (along + across)], 1)
    to_image[:, :2] *= 2 * reach / fine
    ink = cv2.warpAffine(image, to_image, (fine, fine), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return cv2.resize(ink.astype(np.float32), (num_squares, num_squares), interpolation=cv2.INTER_AREA).ravel()


def ink_between(image, dots, width):
    """Return the ink in a band around the line between the dots, over their distance."""
    distance = np.linalg.norm(dots[1] - dots[0]) / UNIT
    along = (dots[1] - dots[0]) / UNIT / distance
    y, x = np.mgrid[: len(image), : len(image)] + 0.5
    x, y = x - dots[0, 0] / UNIT, y - dots[0, 1] / UNIT
    place = (x * along[0] + y * along[1]) / distance
    inside = (place > 0.15) & (place < 0.85) & (np.abs(x * along[1] - y * along[0]) < width * len(image))
    return image[inside].sum() / distance


@pytest.mark.nightly
@pytest.mark.parametrize(("num_squares", "reach"), [(6, 1.0), (6, 1.5), (12, 1.5)])
def test_no_linear_classifier_on_the_frame_of_the_dots_separates_the_classes(pairs, num_squares, reach):
    features = [
        turned(draw_scene(scene, CONFIGS["32"]), scene.dots, num_squares, reach) for pair in pairs for scene in pair
    ]
    assert 0.44 < score_in_folds(features) < 0.56


@pytest.mark.nightly
@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_ink_between_the_dots_does_not_separate_the_classes(pairs, width):
    ink = [ink_between(draw_scene(scene, CONFIGS["32"]), scene.dots, width) for pair in pairs for scene in pair]
    assert 0.42 < roc_auc_score(np.tile([0, 1], NUM_PAIRS), ink) < 0.58


DIGESTS = {
    ("32", TRAIN): "900533a7a8384f42",
    ("32", VALIDATION): "ab4065e9b0a9f7f3",
    ("64", TRAIN): "a93207c0b8a3f89b",
    ("64", VALIDATION): "981904dec1b07297",
    ("128", TRAIN): "30e6afb9fc5b89f6",
    ("128", VALIDATION): "ab5350177ebdaea5",
}


@pytest.mark.parametrize(("name", "split"), DIGESTS)
def test_bytes_are_the_same_everywhere(name, split):
    files = [
        encode_gray(draw_scene(scene, CONFIGS[name]))
        for pair in (0, 1, 999)
        for scene in make_pair(CONFIGS[name], split, pair)
    ]
    assert hashlib.sha256(b"".join(files)).hexdigest()[:16] == DIGESTS[name, split]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_do_not_depend_on_those_before_and_no_two_are_equal(name):
    config = CONFIGS[name]
    images = [
        draw_scene(scene, config).tobytes()
        for split in (TRAIN, VALIDATION)
        for pair in range(4)
        for scene in make_pair(config, split, pair)
    ]
    assert len(set(images)) == 16
    again = [draw_scene(scene, config).tobytes() for scene in make_pair(config, VALIDATION, 2)]
    assert again == images[12:14]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (128, 128)])
def test_png_is_read_by_other_libraries_with_the_same_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.open(io.BytesIO(encode_gray(pixels)))
    assert image.mode == "L"
    assert np.array_equal(image, pixels)
    assert np.array_equal(cv2.imdecode(np.frombuffer(encode_gray(pixels), np.uint8), cv2.IMREAD_UNCHANGED), pixels)


@pytest.mark.slow
def test_both_splits_are_balanced_and_contain_the_drawn_images(small, tmp_path):
    config = CONFIGS["32"]
    assert prepare_dataset("pathfinder/32", str(tmp_path)) == str(tmp_path / "pathfinder" / "32" / "2.0.0")
    for split, (name, size) in enumerate([("train", 12), ("validation", 4)]):
        source = open_source("pathfinder/32", name, str(tmp_path))
        found = [(record["label"], np.asarray(decode_image(record["image"], 1)).tobytes()) for record in source]
        drawn = [
            (label, draw_scene(scene, config).tobytes())
            for pair in range(size // 2)
            for label, scene in enumerate(make_pair(config, split, pair))
        ]
        assert sorted(found) == sorted(drawn)
        assert sum(label for label, _ in found) == size // 2
        assert source.class_names == ("apart", "joined")


@pytest.mark.slow
def test_the_middle_size_is_the_default(small, tmp_path):
    assert prepare_dataset("pathfinder", str(tmp_path)) == str(tmp_path / "pathfinder" / "64" / "2.0.0")
    assert open_source("pathfinder", "train", str(tmp_path)).name == "pathfinder/64"


READ = """
import sys
from mambaout_jax.tasks.classification.source import open_source
source = open_source("pathfinder", "train", sys.argv[1])
assert not [name for name in sys.modules if "prepare" in name or "pathfinder" in name]
print(source.name, len(source))
"""


@pytest.mark.run
def test_the_middle_size_is_the_default_without_importing_the_builder(small, tmp_path):
    prepare_dataset("pathfinder", str(tmp_path))
    (info,) = tmp_path.glob("pathfinder/64/*/dataset_info.json")
    moved = info.read_text().replace("mambaout_jax.data.prepare.pathfinder", "mambaout_jax.data.pathfinder")
    info.write_text(moved)  # as earlier versions wrote it
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["pathfinder/64", "12"]


@pytest.mark.slow
def test_a_second_preparation_writes_nothing(small, tmp_path, monkeypatch):
    folder = prepare_dataset("pathfinder/32", str(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    monkeypatch.setattr(builders, "_generate", None)
    assert prepare_dataset("pathfinder/32:2.0.0", str(tmp_path)) == folder
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


KILLED = """
import os, signal, sys
from mambaout_jax.data.prepare import pathfinder, prepare_dataset
config = pathfinder.Pathfinder.builder_configs["32"]
config.num_train = config.num_validation = 4
def encode(pixels, count=[0]):
    assert "tensorflow" not in sys.modules
    count[0] += 1
    if count[0] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(pixels)
whole, pathfinder.encode_gray = pathfinder.encode_gray, encode
prepare_dataset("pathfinder/32", sys.argv[1])
"""


@pytest.mark.run
def test_a_killed_preparation_leaves_no_dataset(small, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match=r"is not prepared in .*; run: python -m mambaout_jax prepare pathfinder/32"):
        open_source("pathfinder/32", "train", str(tmp_path))
    prepare_dataset("pathfinder/32", str(tmp_path))
    assert len(open_source("pathfinder/32", "train", str(tmp_path))) == 12


@pytest.mark.parametrize("name", ["pathfinder/48", "pathfinder/32:9.9.9"])
def test_an_unknown_size_is_refused_with_the_known_ones(name, tmp_path):
    with pytest.raises(DataError, match=r"one of pathfinder/32, pathfinder/64, pathfinder/128, in version 2\.0\.0"):
        prepare_dataset(name, str(tmp_path))


def test_a_similar_name_suggests_pathfinder(tmp_path):
    with pytest.raises(DataError, match="unknown dataset 'pathfindr'; did you mean 'pathfinder'"):
        prepare_dataset("pathfindr", str(tmp_path))


def test_configs_are_even_and_small_enough_for_a_stored_png():
    for config in CONFIGS.values():
        assert isinstance(config, PathfinderConfig)
        assert config.num_train % 2 == config.num_validation % 2 == 0
        assert config.side * (config.side + 1) < 1 << 16
