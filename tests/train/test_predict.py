"""Any number of files is classified in batches of one size, each seen as its run's config says."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mambaout_jax.evaluate import predict
from mambaout_jax.models import InputSpec
from mambaout_jax.run.workdir import Run
from mambaout_jax.tasks.classification.predictor import ClassProbabilities
from tests.train import tiny

COLOURS = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}


class MeanColour:
    """Classify by the mean color of the image: red, green, blue."""

    in_chans = 3
    input_spec = InputSpec((0.5,) * 3, (0.25,) * 3, (32, 48), 0.875, "center", "bicubic")

    def __init__(self):
        self.shapes = []

    def apply(self, variables, images):
        self.shapes.append(images.shape)
        return variables * images.mean((1, 2))


def classify(model, files, **changes):
    config = tiny.config(**{"model.in_chans": 3, **changes})
    run = Run(config, config.build_task(), model, jnp.float32(1), {"class_names": list(COLOURS)}, 1, "raw")
    answers = predict.predict_files(run, list(map(str, files)))
    return [answer.prediction.to_json(3) for answer in answers]


@pytest.mark.parametrize("count", [1, 5, 9])
def test_any_number_of_images_is_one_compile_and_the_same_answers(tmp_path, monkeypatch, count):
    monkeypatch.setattr(predict, "MAX_PREDICTED", 4)
    names = [list(COLOURS)[index % 3] for index in range(count)]
    files = [tmp_path / f"{index}.png" for index in range(count)]
    for file, name in zip(files, names, strict=True):
        Image.new("RGB", (40, 40), COLOURS[name]).save(file)
    model = MeanColour()
    assert [answer[0]["class"] for answer in classify(model, files)] == names
    assert model.shapes == [(min(count, 4), 32, 48, 3)]


def test_crop_of_the_config_is_what_the_model_sees(tmp_path):
    image = Image.new("RGB", (96, 64), COLOURS["red"])
    image.paste(COLOURS["blue"], (24, 16, 72, 48))
    image.save(tmp_path / "frame.png")
    seen = {}
    for crop_pct in (None, 1.0, 0.5):
        changes = {"model.in_chans": 3, "model.img_size": (32, 48), "data.crop_pct": crop_pct}
        model = MeanColour()
        model.input_spec = tiny.config(**changes).build_task().build_model({"class_names": list(COLOURS)}).input_spec
        seen[crop_pct] = classify(model, [tmp_path / "frame.png"], **changes)[0][0]["class"]
    assert seen == {None: "red", 1.0: "red", 0.5: "blue"}


def test_classes_of_imagenet_are_shown_in_the_words_of_wordnet_and_others_by_name_or_index():
    found = ClassProbabilities(np.float32([0.125, 0.5, 0.375]), ("carp", "n01440764"))
    assert found.describe(2) == [" 50.0 %  tench", " 37.5 %  2"]
    assert found.to_json(1) == [
        {"class": "n01440764", "description": "tench, Tinca tinca", "index": 1, "probability": 0.5}
    ]
    assert found.to_json()[1:] == [
        {"class": "2", "index": 2, "probability": 0.375},
        {"class": "carp", "index": 0, "probability": 0.125},
    ]
    assert repr(found._replace(top=2)) == "<tench 50.0 %, 2 37.5 %>"
