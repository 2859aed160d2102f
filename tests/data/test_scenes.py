"""The dataset `scenes` is fixed, its parts agree, and training and validation share nothing."""

import dataclasses
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.data.prepare.scenes import (
    MIN_VISIBLE,
    Scenes,
    draw_digit,
    load_material,
    make_scene,
    to_record,
)

CONFIGS = {config.name: config for config in Scenes.BUILDER_CONFIGS}


@pytest.fixture(scope="module")
def material():
    return load_material()


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_training_and_validation_have_disjoint_digits_and_photographs(material):
    train, validation = ({digit.tobytes() for digit in part.digits} for part in material.values())
    assert not train & validation
    for left, right in zip(material["train"].photographs, material["validation"].photographs, strict=True):
        whole = np.concatenate([left, right], axis=1)
        assert whole.shape == (427, 640, 3)


@pytest.mark.parametrize(
    ("name", "digest"),
    [("128", "13082ccd68ee334f"), ("match_128", "80c7c146a8555325")],
)
def test_labels_of_a_scene_are_the_same_on_every_machine(material, name, digest):
    """Photographs depend on the JPEG decoder, the rest does not."""
    scenes = [make_scene(CONFIGS[name], material["train"], 0, index) for index in range(3)]
    content = b"".join(part.tobytes() for scene in scenes for part in (scene.labels, scene.instances))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["128", "match_128"])
def test_label_maps_instance_maps_and_boxes_agree(material, name):
    for index in range(10):
        record = to_record(make_scene(CONFIGS[name], material["validation"], 1, index))
        labels, instances = pixels(record["label_map"]), pixels(record["instance_map"])
        assert instances.max() == len(record["objects"])
        for number, found in enumerate(record["objects"], 1):
            mask, box = instances == number, found["bbox"]
            assert mask.sum() >= MIN_VISIBLE
            assert set(labels[mask].tolist()) == {found["label"]}
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert (box.ymin, box.ymax) == (rows[0] / 128, (rows[-1] + 1) / 128)
            assert (box.xmin, box.xmax) == (columns[0] / 128, (columns[-1] + 1) / 128)


def test_the_corner_decides_the_classes_of_a_matching_scene(material):
    """Every scene has a match, and the frame itself has no class."""
    for index in range(10):
        scene = make_scene(CONFIGS["match_128"], material["train"], 0, index)
        assert 1 in scene.classes
        assert (scene.labels == IGNORED).sum() == 32 * 32
        assert set(np.unique(scene.labels)) <= {0, 1, IGNORED}


def test_scenes_of_other_sizes_have_more_pixels(material):
    scene = make_scene(CONFIGS["256"], material["train"], 0, 0)
    assert scene.image.shape == (256, 256, 3)
    assert scene.labels.max() > 0


def test_a_digit_that_is_not_turned_has_its_own_pixels():
    digit = np.random.default_rng(0).integers(0, 17, (8, 8))
    ink = draw_digit(digit, 8, 8, 0, np.array([4 * 256, 4 * 256]))
    np.testing.assert_array_equal(ink, (3 * (digit * 255 // 16) - 256).clip(0, 255))
    turned = draw_digit(digit, 8, 8, 180, np.array([4 * 256, 4 * 256]))
    np.testing.assert_allclose(turned, ink[::-1, ::-1], atol=6)


def test_any_number_of_digits_is_drawn(material):
    config = dataclasses.replace(CONFIGS["128"], num_digits=(4, 4))
    assert len(make_scene(config, material["train"], 0, 5).classes) == 4
