"""A written program computes what the run's model computes; a failed export leaves nothing."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import mambaout_jax as mo
from mambaout_jax.__main__ import main
from mambaout_jax.export import onnx_model, programs
from mambaout_jax.export.torch import import_weights
from mambaout_jax.run.workdir import load_run
from mambaout_jax.weights.folder import write_folder
from tests.train import written_run

NAMES = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir of a classifier with random weights."""
    folder = tmp_path_factory.mktemp("programs") / "run"
    written_run.write(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    """A workdir of a segmentation model with random weights."""
    folder = tmp_path_factory.mktemp("programs")
    model = mo.create_model(
        "upernet_mambaout_femto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3, img_size=64
    )
    write_folder(str(folder / "weights"), model, mo.to_torch(model, model.init(jax.random.key(0))))
    import_weights(str(folder / "weights"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A workdir of a detector with random weights."""
    folder = tmp_path_factory.mktemp("programs")
    sizes = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8), "channels": 8, "box_channels": 16, "anchor_scale": 4.0}
    model = mo.create_model("mask_rcnn_mambaout_femto", num_classes=3, img_size=64, **sizes)
    state_dict = mo.to_torch(model, model.init(jax.random.key(0)))
    state_dict["roi_head.bbox_head.fc_cls.bias"] = np.array([0, 5, 0, 0], np.float32)  # scores above 1/2
    write_folder(str(folder / "weights"), model, state_dict)
    import_weights(str(folder / "weights"), folder / "run")
    return folder / "run"


def onnx_outputs(path, images):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": np.asarray(images)}), strict=True))


def metadata(path):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def draw(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_onnx_takes_channels_first_and_any_batch_size(workdir, tmp_path, capsys):
    out = tmp_path / "digits.onnx"
    assert main(["export", "onnx", str(workdir), "--out", str(out)]) == 0
    assert left_in(tmp_path) == ["digits.onnx"]
    assert "the outputs agree, with a largest difference of" in capsys.readouterr().out
    run = load_run(workdir)
    for batch in (1, 5):
        images = draw(batch, *run.model.input_spec.size, run.model.in_chans)
        found = onnx_outputs(out, images.transpose(0, 3, 1, 2))
        assert_close(found["logits"], run.model.apply(run.variables, images))
    about = metadata(out)
    assert about["class_names"] == list(NAMES)
    assert about["input"]["shape"] == ["batch", run.model.in_chans, *run.model.input_spec.size]
    assert about["outputs"] == {"logits": ["batch", 10]}


@pytest.mark.slow
def test_the_normalization_can_be_inside(workdir, tmp_path):
    assert (
        main(["export", "onnx", str(workdir), "--out", str(tmp_path / "a.onnx"), "--normalize", "--weights=raw"]) == 0
    )
    run = load_run(workdir, "raw")
    shape = (2, *run.model.input_spec.size, run.model.in_chans)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    found = onnx_outputs(tmp_path / "a.onnx", pixels.transpose(0, 3, 1, 2))
    assert_close(found["logits"], run.model.apply(run.variables, run.model.input_spec.normalize(pixels)))


@pytest.mark.slow
def test_features_and_embedding_are_outputs_of_their_own(workdir, tmp_path):
    run = load_run(workdir)
    images = draw(2, 64, 40, run.model.in_chans)
    for output in ("features", "embedding"):
        out = tmp_path / f"{output}.onnx"
        assert main(["export", "onnx", str(workdir), f"--out={out}", f"--output={output}", "--img-size=64x40"]) == 0
        found = onnx_outputs(out, images.transpose(0, 3, 1, 2))
        expected = run.model.apply(run.variables, images, output)
        if output == "embedding":
            assert_close(found["embedding"], expected)
            continue
        assert list(found) == [f"features_{i}" for i in range(len(expected))]
        for value, name in zip(expected, found, strict=True):
            assert_close(found[name].transpose(0, 2, 3, 1), value)


@pytest.mark.slow
def test_every_pixel_of_a_segmentation_has_its_logits(segmentation, tmp_path):
    assert main(["export", "onnx", str(segmentation), "--out", str(tmp_path / "a.onnx"), "--normalize"]) == 0
    images = np.zeros((2, 3, 64, 64), np.uint8)
    assert onnx_outputs(tmp_path / "a.onnx", images)["logits"].shape == (2, 3, 64, 64)


@pytest.mark.slow
def test_a_detector_finds_the_same_objects(detector, tmp_path):
    """Masks are no maps of channels, and what is beyond the objects of an image is 0."""
    assert main(["export", "onnx", str(detector), "--out", str(tmp_path / "a.onnx")]) == 0
    run, images = load_run(detector), draw(3, 64, 64, 3)
    expected = jax.jit(lambda x: run.task.exported_outputs(run.model, run.variables, x))(images)
    found = onnx_outputs(tmp_path / "a.onnx", images.transpose(0, 3, 1, 2))
    expected = {name: np.asarray(x) for name, x in expected.items()}
    assert found["mask_logits"].shape == (3, 100, 28, 28)
    assert found["valid"].any()
    np.testing.assert_array_equal(found["valid"], expected["valid"])
    for name, x in run.task.align_outputs(found, expected).items():
        assert_close(x, expected[name])
        assert not x[~expected["valid"]].any()


@pytest.mark.slow
def test_detections_are_compared_in_any_order(detector):
    task, rng = load_run(detector).task, np.random.default_rng(0)
    expected = {
        "boxes": rng.uniform(0, 60, (2, 9, 4)),
        "scores": np.sort(rng.uniform(0, 1, (2, 9)))[:, ::-1],
        "classes": rng.integers(0, 3, (2, 9)),
        "valid": np.arange(9)[None] < np.array([[9], [4]]),
    }
    order = rng.permutation(9)
    found = {name: x[:, order] for name, x in expected.items()}
    for name, x in task.align_outputs(found, expected).items():
        np.testing.assert_array_equal(x, expected[name])


# What a reader of a .stablehlo file runs: it has JAX and flatbuffers, not this package.
READER = """
import sys
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], program.call(np.load(sys.argv[2]))["logits"])
assert not any(name.startswith(("mambaout_jax", "flax", "orbax", "tensorflow")) for name in sys.modules)
"""


@pytest.mark.run
@pytest.mark.parametrize("size", [None, 8])  # a batch of 8 has kernels for TPUs
def test_a_program_of_stablehlo_computes_the_same_bits_without_this_package(workdir, tmp_path, size):
    out = tmp_path / "digits.stablehlo"
    options = [f"--batch-size={size}"] if size else []
    assert main(["export", "stablehlo", str(workdir), "--out", str(out), *options]) == 0
    assert left_in(tmp_path) == ["digits.stablehlo", "digits.stablehlo.json"]
    run = load_run(workdir)
    images = draw(size or 2, *run.model.input_spec.size, run.model.in_chans)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", READER, str(out), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    expected = jax.jit(lambda images: run.model.apply(run.variables, images))(images)  # with constants, as exported
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    about = json.loads((tmp_path / "digits.stablehlo.json").read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["batch_size"] == size
    assert about["input"]["shape"] == [size or "batch", *images.shape[1:]]
    assert about["outputs"]["logits"] == [size or "batch", *expected.shape[1:]]


def test_weights_of_a_large_model_are_in_a_second_file(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_model, "_MAX_BYTES", 1000)
    arguments = ["export", "onnx", str(workdir), "--out", str(tmp_path / "a.onnx")]
    assert main(arguments) == 0
    assert left_in(tmp_path) == ["a.onnx", "a.onnx.data"]
    (tmp_path / "a.onnx").unlink()
    assert main(arguments) == 2
    assert "a.onnx.data exists" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--force"]) == 0
    assert left_in(tmp_path) == ["a.onnx"]


def test_a_description_is_not_replaced_without_force(workdir, tmp_path, capsys):
    (tmp_path / "a.stablehlo.json").write_text("mine")
    assert main(["export", "stablehlo", str(workdir), "--out", str(tmp_path / "a.stablehlo")]) == 2
    assert "a.stablehlo.json exists" in capsys.readouterr().err
    assert (tmp_path / "a.stablehlo.json").read_text() == "mine"
    assert left_in(tmp_path) == ["a.stablehlo.json"]


def test_a_program_that_computes_something_else_is_not_kept(workdir, tmp_path, monkeypatch, capsys):
    def build(*args, **options):
        program = build_program(*args, **options)
        calls = []

        def function(images):
            calls.append(1)
            found = program.function(images)
            return found if len(calls) == 2 else {name: value + 0.01 for name, value in found.items()}

        return program._replace(function=function)

    build_program = programs.build_program
    monkeypatch.setattr(programs, "build_program", build)
    assert main(["export", "onnx", str(workdir), "--out", str(tmp_path / "a.onnx")]) == 2
    assert "where at most 0.0001 is allowed; nothing was kept" in capsys.readouterr().err
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out=a.pth"], "a.pth has an unknown extension; expected .onnx"),
        (["--out=taken.onnx"], "taken.onnx exists; choose another path, or replace it with --force"),
        (["--out=a.onnx", "--img-size=2by3"], "'2by3' is not a side or HEIGHTxWIDTH"),
        (["--out=a.onnx", "--img-size=8"], "img_size is"),
        (["--out=a.onnx", "--weights=best"], "invalid choice: 'best'"),
        (["--out=no/such/folder/a.onnx"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_one_sentence(workdir, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_text("")
    try:
        code = main(["export", "onnx", str(workdir), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert left_in(tmp_path) == ["taken.onnx"]


def test_an_existing_file_is_replaced_on_request(workdir, tmp_path):
    (tmp_path / "a.onnx").write_text("")
    assert main(["export", "onnx", str(workdir), "--out", str(tmp_path / "a.onnx"), "--force"]) == 0
    assert metadata(tmp_path / "a.onnx")["model"] == "mambaout_femto"
