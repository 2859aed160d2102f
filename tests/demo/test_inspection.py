"""What the app shows is what the other commands compute, by programs that are compiled once."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mambaout_jax.analyze.receptive_field import images_from, measure
from mambaout_jax.data import DataError
from mambaout_jax.demo.inspection import Inspector, Row, draw, draw_channels, magnitude, rows_of
from mambaout_jax.evaluate.predict import predict_files
from mambaout_jax.run.workdir import load_run
from tests.demo.test_site import photo, png
from tests.export.test_programs import NAMES, segmentation, workdir  # noqa: F401 - fixtures
from tests.toy.task import SpotPrediction


@pytest.fixture(scope="module")
def inspector(workdir):  # noqa: F811
    return Inspector(str(workdir))


def pixels_of(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)))


def test_prediction_is_that_of_the_command(inspector, workdir, tmp_path):  # noqa: F811
    (tmp_path / "a.png").write_bytes(png(photo(60, 80)))
    (expected,) = predict_files(load_run(workdir), [str(tmp_path / "a.png")])
    shown = inspector.predict(png(photo(60, 80)))
    assert shown.rows == [Row(entry["class"], entry["probability"]) for entry in expected.prediction.to_json(5)]
    assert shown.pictures == []
    assert {row.text for row in shown.rows} < set(NAMES)


@pytest.mark.slow
def test_segmentation_shows_its_files_and_the_colors_of_classes(segmentation, tmp_path):  # noqa: F811
    (tmp_path / "a.png").write_bytes(png(photo(60, 80)))
    (expected,) = predict_files(load_run(segmentation), [str(tmp_path / "a.png")])
    files = expected.prediction.files(png(photo(60, 80)))
    ((labels, overlay),) = Inspector(str(segmentation)).predict(png(photo(60, 80))).pictures
    assert (labels.caption, labels.content) == ("labels", files["_labels.png"])
    assert (overlay.caption, overlay.content) == ("overlay", files["_overlay.jpg"])
    assert overlay.url.startswith("data:image/jpeg;base64,")
    colors = ["#000001", "#000002", "#000003"]
    rows = rows_of(expected.prediction, colors)
    assert [row.color for row in rows] == [colors[entry["index"]] for entry in expected.prediction.to_json(5)]
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_predictions_without_classes_are_lines():
    rows = rows_of(SpotPrediction(np.array([[0.5, 0.25, 0.9]])), None)
    assert rows == [Row("row 0.50 column 0.25 score 0.90")]


@pytest.mark.slow
def test_feature_maps_are_those_of_the_model(inspector, workdir):  # noqa: F811
    shown = inspector.feature_maps(png(photo(32, 32)))
    run = load_run(workdir)
    predictor = run.task.predictor(run.model, run.labels)
    image = predictor.prepare(png(photo(32, 32)))["image"]
    maps = run.model.features(run.variables, run.model.input_spec.normalize(jnp.asarray(image[None])))
    magnitudes, sheets = shown.pictures
    for found, sheet, feature_map in zip(magnitudes, sheets, maps, strict=True):
        np.testing.assert_array_equal(pixels_of(found), draw(np.sqrt(np.square(feature_map[0]).mean(-1))))
        np.testing.assert_array_equal(pixels_of(sheet), draw_channels(np.asarray(feature_map[0])))
        assert f"{feature_map.shape[1]}x{feature_map.shape[2]}" in found.caption


@pytest.mark.slow
def test_receptive_fields_are_those_of_analyze(inspector, workdir, tmp_path):  # noqa: F811
    (tmp_path / "a.png").write_bytes(png(photo(40, 50)))
    (fields,) = inspector.receptive_fields(png(photo(40, 50))).pictures
    for stage, found in enumerate(fields):
        images_of = images_from([str(tmp_path / "a.png")])
        expected = measure(str(workdir), stage=stage, num_images=1, images_of=images_of)
        np.testing.assert_array_equal(pixels_of(found), draw(expected.decades(), (-4, 0)))
        assert f"{expected.areas()['0.5']:.1%}" in found.caption


@pytest.mark.slow
def test_a_second_picture_of_another_size_compiles_nothing(inspector, caplog):
    def inspect(image):
        return [getattr(inspector, method)(image) for method in ("predict", "feature_maps", "receptive_fields")]

    inspect(png(photo(32, 40)))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        inspect(png(photo(90, 64)))
        jax.jit(lambda x: x * 3)(np.ones(7, np.float32))
    (compiled,) = (record.message for record in caplog.records if record.message.startswith("Compiling"))
    assert "lambda" in compiled


@pytest.mark.parametrize("method", ["predict", "feature_maps", "receptive_fields"])
def test_what_is_no_picture_is_an_error_for_users(inspector, method):
    with pytest.raises(DataError, match="Pillow cannot decode the image"):
        getattr(inspector, method)(b"no picture")


def test_description_names_the_weights_and_the_scans(inspector):
    assert inspector.describe() == "run · 0.0 M parameters · 32x32 px · no SSM · ema, step 7"


def test_values_are_drawn_in_their_range_and_enlarged_without_blurring():
    drawn = draw(np.array([[0.0, 1.0], [1.0, 3.0]]))
    assert drawn.shape == (256, 256, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3
    assert (drawn[:128, :128] == drawn[0, 0]).all()
    np.testing.assert_array_equal(draw(np.full((2, 2), 5.0)), draw(np.full((2, 2), np.nan)))
    assert draw(np.zeros((300, 400))).shape == (300, 400, 3)


def test_channels_that_vary_most_come_first():
    feature_map = np.random.default_rng(0).normal(size=(4, 4, 40))
    spread = np.where(np.arange(40) % 2, 3.0, 0.1)
    order = np.argsort(-(feature_map * spread).var((0, 1)))
    sorted_map = (feature_map * spread)[:, :, order]
    np.testing.assert_array_equal(draw_channels(feature_map * spread), draw_channels(sorted_map[:, :, :16]))
    few = draw_channels(feature_map[:, :, :3])
    assert few.shape[0] == few.shape[1] == 2 * 128 + 2
    assert (few[130:, 130:] == 255).all()  # three channels leave one place of four
    point = draw_channels(np.arange(5.0).reshape(1, 1, 5))
    assert len(np.unique(point.reshape(-1, 3), axis=0)) == 6  # five values and the gaps


def test_magnitude_is_the_root_mean_square():
    np.testing.assert_allclose(magnitude(np.array([[[3.0, 4.0]]])), [[np.sqrt(12.5)]])
