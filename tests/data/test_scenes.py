"""The dataset `scenes` is fixed, its parts agree, and training and validation share nothing."""

import contextlib
import dataclasses
import hashlib
import io
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn import exceptions, metrics, neural_network

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.data.prepare import builders, ensure_prepared
from mambaout_jax.data.prepare.scenes import (
    CUE_COLORS,
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
    [("128", "9b45c3f2ee1df1f2"), ("cue_128", "83ee02137f02a7ea")],
)
def test_labels_of_a_scene_are_the_same_on_every_machine(material, name, digest):
    """Photographs depend on the JPEG decoder, the rest does not."""
    scenes = [make_scene(CONFIGS[name], material["train"], 0, index) for index in range(3)]
    content = b"".join(part.tobytes() for scene in scenes for part in (scene.labels, scene.instances))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["128", "cue_128"])
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


def test_the_color_of_a_square_in_a_corner_is_the_class_of_all_digits(material):
    """Each class and each corner occurs, and the square itself has no class."""
    seen = set()
    for index in range(60):
        scene = make_scene(CONFIGS["cue_128"], material["train"], 0, index)
        corner = scene.labels == IGNORED
        assert corner.sum() == 32 * 32
        top, left = map(int, np.argwhere(corner)[0])
        (kind,) = {*scene.classes}
        assert set(np.unique(scene.labels)) <= {0, kind, IGNORED}
        assert tuple(scene.image[top + 16, left + 16]) == CUE_COLORS[kind - 1]
        seen |= {("class", kind), ("corner", top, left)}
    assert len(seen) == 8


@pytest.mark.slow
def test_nothing_but_the_square_tells_the_class(material):
    """Colors and number of digits have the same distribution in all classes."""
    scenes = [make_scene(CONFIGS["cue_128"], material["train"], 0, index) for index in range(400)]
    for kind in range(1, 5):
        own = [scene for scene in scenes if scene.classes[0] == kind]
        assert 60 < len(own) < 140
        assert abs(np.mean([len(scene.classes) for scene in own]) - 7.5) < 1
        inks = np.concatenate([scene.image[scene.labels == kind] for scene in own])
        assert np.ptp(inks.mean(axis=0)) < 10


def test_scenes_of_other_sizes_have_more_pixels(material):
    scene = make_scene(CONFIGS["256"], material["train"], 0, 0)
    assert scene.image.shape == (256, 256, 3)
    assert scene.labels.max() > 0


def test_a_digit_that_is_not_turned_has_its_own_pixels():
    digit = np.random.default_rng(0).integers(0, 17, (8, 8))
    ink = draw_digit(digit, 8, 8, 0, np.array([4 * 256, 4 * 256]))
    np.testing.assert_array_equal(ink, (3 * (digit * 255 // 16) - 128).clip(0, 255))
    turned = draw_digit(digit, 8, 8, 180, np.array([4 * 256, 4 * 256]))
    np.testing.assert_allclose(turned, ink[::-1, ::-1], atol=6)


def test_any_number_of_digits_is_drawn(material):
    config = dataclasses.replace(CONFIGS["128"], num_digits=(4, 4))
    assert len(make_scene(config, material["train"], 0, 5).classes) == 4


@pytest.mark.slow
def test_colors_alone_do_not_solve_the_scenes(material):
    """A model of 1x1 convolutions finds the digits, but not which digits they are."""

    def pixels_of(split, count):
        scenes = [make_scene(CONFIGS["128"], material[split], int(split != "train"), index) for index in range(count)]
        images, labels = (np.stack([getattr(scene, name) for scene in scenes]) for name in ("image", "labels"))
        return images.reshape(-1, 3) / 255, labels.ravel()

    model = neural_network.MLPClassifier((32, 32), learning_rate_init=0.01, batch_size=2048, max_iter=4, random_state=0)
    images, labels = pixels_of("train", 30)
    with warnings.catch_warnings(action="ignore", category=exceptions.ConvergenceWarning):
        model.fit(images, labels)
    images, labels = pixels_of("validation", 30)
    found = model.predict(images)
    iou = metrics.jaccard_score(labels, found, average=None, labels=range(11))
    assert metrics.jaccard_score(labels > 0, model.predict_proba(images)[:, 0] < 0.5) > 0.5
    assert iou.mean() < 0.4


def test_the_preparation_before_a_training_is_announced(tmp_path, monkeypatch, capfd):
    @contextlib.contextmanager
    def announce_at_once(sentence, say):
        say(sentence)
        yield

    def stop(builder):
        raise KeyboardInterrupt

    monkeypatch.setattr(builders, "announced", announce_at_once)
    monkeypatch.setattr(builders, "_generate", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_prepared("scenes", str(tmp_path))
    assert capfd.readouterr().err == f"Preparing scenes/128 in {tmp_path}/scenes/128/{Scenes.VERSION}.\n"
