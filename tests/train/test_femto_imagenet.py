"""The recipe lowers the loss of MambaOut-Femto on a generated set of 1000 classes."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mambaout_jax.run.config import parse_config
from mambaout_jax.train.loop import train
from tests.data import photos

IMAGENET = Path(__file__).parents[2] / "configs" / "imagenet.py"
NUM_IMAGES = 1600
SMALL = {
    "data.name": "thousand",
    "num_epochs": 4,
    "batch_size": 64,
    "microbatch_size": 32,
    "eval_batch_size": 32,
    "eval_every_epochs": 4,
    "log_every_steps": 1,
    "data.num_workers": 0,
    "augment.mixup_group": 16,
    "optim.learning_rate": 2e-4,
    "optim.warmup_epochs": 0,
    "optim.cooldown_epochs": 0,
}


def draw_class(label: int) -> Image.Image:
    """Paint 64 pixels in a color given by the three digits of a label, ten levels per channel."""
    return Image.new("RGB", (64, 64), (28 * (label // 100), 28 * (label // 10 % 10), 28 * (label % 10)))


class Thousand(tfds.core.GeneratorBasedBuilder):
    """Build `thousand`, with one or two images per class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(NUM_IMAGES), "validation": self._generate_examples(32)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": photos.encode(draw_class(number * 7 % 1000)), "label": number * 7 % 1000}


@pytest.mark.nightly
def test_a_hundred_steps_of_the_recipe_lower_the_loss(tmp_path):
    tfds.disable_progress_bar()
    photos.write(Thousand, tmp_path / "datasets")
    config = runpy.run_path(str(IMAGENET))["get_config"]("mambaout_femto")
    config.model.update(img_size=32, depths=(1, 1, 1, 1))
    config.update_from_flattened_dict({**SMALL, "data.data_dir": str(tmp_path / "datasets")})
    results = train(parse_config(config), tmp_path / "run")
    assert results["steps"] == 100
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = np.array([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses) == 100
    first, last = losses[:10].mean(), losses[-10:].mean()
    assert last < first - 0.3, f"from {first:.3f} to {last:.3f}"
    assert last < np.log(1000) - 0.1, "more than a guess among 1000 classes"
