"""Contributions are derivatives; areas and pictures are those of the contributions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.analyze.receptive_field import ReceptiveField, draw, measure, smallest_area
from mambaout_jax.run.errors import RunError
from tests.train import written_run

OPTIONS = ["--size=32"]


def field_of(contributions):
    return ReceptiveField("a", "a", "random", 0, 1, contributions / contributions.sum())


def test_areas_are_those_of_squares_around_the_median():
    even = np.ones((21, 21))
    assert smallest_area(even, 0.99) == 1
    assert smallest_area(even, 0.2) == (11 / 21) ** 2  # 9 by 9 pixels have 18 %
    point = np.zeros((20, 30))
    point[3, 28] = 5.0
    assert smallest_area(point, 0.5) == smallest_area(point, 0.99) == 1 / 600
    box = np.zeros((40, 40))
    box[10:15, 20:25] = 1.0
    assert smallest_area(box, 0.99) == 25 / 1600


@pytest.mark.slow
def test_contributions_of_one_convolution_are_its_window():
    """The first map depends on the pixels that its convolutions reach, by the derivative."""
    found = measure("test_mambaout", stage=0, num_images=2, img_size=(64, 96))
    rows, columns = np.nonzero(found.contributions)
    assert found.contributions.shape == (64, 96)
    assert found.contributions.sum() == pytest.approx(1)
    # Two 3x3 convolutions with stride 2, and a 7x7 one at stride 4.
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 7 + 6 * 4
    model = mo.create_model("test_mambaout", img_size=(64, 96))
    variables = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)

    def center(x):
        return jax.nn.relu(model.features(variables, x)[0][:, 8, 12]).sum()

    expected = np.maximum(jax.grad(center)(jnp.asarray(images)), 0).sum((0, 3))
    np.testing.assert_allclose(found.contributions, expected / expected.sum(), atol=1e-6)


@pytest.mark.slow
def test_models_and_runs_are_printed_and_drawn(tmp_path, capsys):
    written_run.write(tmp_path / "run", tuple("0123456789"))
    Image.new("L", (40, 40), 200).save(tmp_path / "a.png")
    sources = [str(tmp_path / "run")]
    arguments = ["analyze", "--erf", *sources, *OPTIONS, f"--images={tmp_path / 'a.png'}", f"--out={tmp_path / 'erf'}"]
    assert main(arguments) == 0
    assert "ema, step 7" in capsys.readouterr().out
    with Image.open(tmp_path / "erf" / "erf.png") as picture:
        assert picture.width > 300
    assert main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["areas"].keys() == {"0.2", "0.3", "0.5", "0.99"}
    assert found["areas"]["0.2"] <= found["areas"]["0.5"] <= found["areas"]["0.99"] <= 1


@pytest.mark.slow
def test_more_images_than_there_are_are_refused(tmp_path, capsys):
    Image.new("RGB", (40, 40), (9, 99, 200)).save(tmp_path / "a.png")
    arguments = ["analyze", "--erf", "test_mambaout", "--size=32", f"--images={tmp_path}"]
    assert main([*arguments, "--num-images=2"]) == 2
    assert "--num-images is 2, but --images has 1 image" in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["num_images"], found["stage"]) == (1, 4)


@pytest.mark.slow
def test_a_model_with_a_head_is_measured_by_its_backbone():
    assert measure("upernet_test_mambaout", num_images=1, img_size=(32, 32)).stage == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--erf", "test_mambaout", "--stage=5"],
            "stage is 5, but test_mambaout has 4 feature maps; expected 1 to 4",
        ),
        (["--erf", "mambaout_femo"], "did you mean"),
        (["test_mambaout", "--erf", "test_mambaout"], "MODEL and --dataset cannot be combined with --erf"),
        (["test_mambaout", "--stage=1"], "belong to --erf"),
        (["--erf", "no/such/run"], "is not the workdir of a run"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, arguments, words):
    assert main(["analyze", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_weights_without_a_gradient_are_named(tmp_path):
    unknown = np.full((1, 32, 32, 3), np.nan, np.float32)
    with pytest.raises(RunError, match="the gradient of test_mambaout is zero or not finite"):
        measure("test_mambaout", num_images=1, img_size=(32, 32), images_of=lambda *_: unknown)


def test_a_picture_has_a_column_for_each_model(tmp_path):
    fields = [field_of(np.ones((8, 8))), field_of(np.eye(8) + 0.1)]
    for number in (1, 2):
        draw(fields[:number], tmp_path / f"{number}.png")
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "2.png") as two:
        assert two.width > 1.5 * one.width
