"""A family and a task of another package work as the built-in ones do, and compute what a plain loop computes.

They are in tests/toy. The package finds them by `config.plugins` or by an entry point; nothing of it is patched.
"""

import functools
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

import mambaout_jax as mo
from mambaout_jax import distributed, plugins
from mambaout_jax.__main__ import main as cli
from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import import_weights
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.state import TrainState
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.api import Task
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.train.step import init_step_metrics, make_train_step
from mambaout_jax.weights import read_checkpoint
from tests.processes import finish_all, start_all
from tests.toy.records import MAX_SPOTS, SIDE, SpotSource, SpotTransform
from tests.toy.task import GRID, THRESHOLD, Spots
from tests.train.runs import assert_same_weights, records

ROOT = Path(__file__).parents[1]
CONFIG = "tests/toy/config.py"
PLUGINS = ("tests.toy.plugin",)
NUM_STEPS = 28


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """Begin without plugins, as a fresh process does, and leave none to other tests."""
    monkeypatch.setattr(plugins, "_loaded", {})


def run_program(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def train_arguments(workdir, **changes):
    return ["main.py", f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in changes.items())]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run from start to end that decodes in threads; no test changes it."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    done = run_program(*train_arguments(workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture
def validation():
    return SpotSource("digits", "validation", None)


# Whole runs.


@pytest.mark.nightly
def test_a_run_with_workers_stops_and_resumes_to_the_bits_of_an_unbroken_one(unbroken, tmp_path):
    arguments = train_arguments(tmp_path / "run", **{"data.num_workers": 2})
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not records(tmp_path / "run", "train"):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, errors
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert 2 <= max(steps) < NUM_STEPS
    done = run_program(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"resumed from step {max(steps)}" in done.stderr
    with np.load(unbroken / "predictions.npz") as ours, np.load(tmp_path / "run" / "predictions.npz") as theirs:
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
    assert_same_weights(tmp_path / "run", unbroken)


@pytest.mark.run
def test_a_run_logs_the_terms_of_its_loss_and_the_metrics_of_its_task(unbroken):
    logged = records(unbroken, "train")
    assert logged[-1]["step"] == NUM_STEPS
    for record in logged:
        assert record["loss"] == pytest.approx(sum(record[f"loss/{term}"] for term in Spots.loss_terms), rel=1e-5)
    assert logged[-1]["loss"] < logged[0]["loss"]
    (evaluated,) = records(unbroken, "eval")
    assert evaluated["raw"].keys() == evaluated["ema"].keys() == {"error", "recall", "count"}
    environment = json.loads((unbroken / "environment.json").read_text())
    assert environment["labels"] == {"kinds": ["spot"]}
    page = (unbroken / "report.html").read_text()
    with np.load(unbroken / "predictions.npz") as predictions:
        assert f"{predictions['counts'].sum()} spots of kind spot" in page
    assert all(words in page for words in ("count error", "recall", "2 passes"))


def test_the_best_checkpoint_has_the_lowest_error(tmp_path):
    variables = {"params": {"weight": jnp.zeros(3)}, "batch_stats": {}}
    checkpoints = Checkpoints(epath.Path(tmp_path), Spots.metrics[0])
    for step, error in enumerate([0.5, 0.2, 0.9, 0.3, 0.4], 1):
        checkpoints.save(TrainState(jnp.int32(step), variables, None, optax.sgd(0.1).init(variables)), {}, error)
    checkpoints.close()
    assert Checkpoints(epath.Path(tmp_path), Spots.metrics[0]).steps() == [2, 4, 5]


def plain_finder(run):
    """Build what finds the spots of one image (h, w, 1): two forward passes, averaged, and a loop over cells."""

    @jax.jit
    def score(image):
        (features,) = run.model.apply(run.variables, (image[None] / 255 - 0.5) / 0.5, output="features")
        return 1 / (1 + jnp.exp(-run.model.call(run.variables, "propose", features)[0][0, :, :, 0]))

    def find(image):
        image = image.astype(np.float32)
        scores = (np.asarray(score(image)) + np.asarray(score(image[:, ::-1]))[:, ::-1]) / 2
        cells = [(row, column) for row in range(GRID) for column in range(GRID) if scores[row, column] > THRESHOLD]
        return [((row + 0.5) / GRID, (column + 0.5) / GRID, scores[row, column]) for row, column in cells]

    return find


@pytest.mark.run
def test_evaluation_equals_a_plain_loop_over_images(unbroken, validation):
    done = run_program("main.py", "--mode=evaluate", f"--workdir={unbroken}")
    assert done.returncode == 0, done.stderr
    find, transform = plain_finder(load_run(unbroken)), SpotTransform(0.0)
    errors, hits, found = [], [], []
    for index in range(len(validation)):
        example = transform(validation[index])
        spots = find(example["image"])
        truth = example["spots"]["place"][example["spots"]["valid"]]
        errors.append(abs(len(spots) - len(truth)))
        hits += [any(max(abs(row - r), abs(column - c)) < 1 / GRID for r, c, _ in spots) for row, column in truth]
        found.append(spots)
    counts = [len(spots) for spots in found]
    assert len(set(counts)) > 2, "predictions of one size only show nothing"
    (scores,) = evaluate(None, unbroken)["sets"]
    expected = {"error": np.mean(errors), "recall": 100 * np.mean(hits), "count": len(validation)}
    assert scores["ema"] == pytest.approx(expected, rel=1e-6)
    (row,) = (line.split() for line in done.stdout.splitlines() if " ema " in line)
    assert row[-3:] == [f"{expected['error']:.3f}", f"{expected['recall']:.2f}", "360"]
    with np.load(unbroken / "predictions.npz") as predictions:
        assert predictions["counts"].tolist() == counts
        np.testing.assert_allclose(predictions["found"], np.concatenate([s for s in found if s]), rtol=1e-5)


@pytest.mark.run
def test_predictions_of_files_equal_a_plain_loop(unbroken, validation, tmp_path):
    find, transform, files = plain_finder(load_run(unbroken)), SpotTransform(0.0), []
    for index in range(6):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(validation[index]["image"])
    (tmp_path / "broken.png").write_text("")
    done = run_program("-m", "mambaout_jax", "predict", unbroken, *files, tmp_path / "broken.png", "--json", "--top=99")
    assert done.returncode == 2, done.stderr
    *answers, broken = json.loads(done.stdout)
    assert "error" in broken
    assert [answer["file"] for answer in answers] == list(map(str, files))
    for index, answer in enumerate(answers):
        spots = find(transform(validation[index])["image"])
        expected = sorted(spots, key=lambda spot: -spot[2])
        predicted = [tuple(spot.values()) for spot in answer["predictions"]]
        np.testing.assert_allclose(np.reshape(predicted, (-1, 3)), np.reshape(expected, (-1, 3)), rtol=1e-5)


@pytest.mark.run
def test_weights_go_to_pytorch_and_come_back_with_the_same_bits(unbroken, tmp_path):
    file = tmp_path / "spots.safetensors"
    assert cli(["convert", "export", str(unbroken), f"--out={file}"]) == 0
    tensors = read_checkpoint(file).tensors
    assert {"rpn.logit_scale", "rpn.cls_logits.weight", "rpn.bn.running_var", "bn.running_mean"} <= tensors.keys()
    assert tensors["roi.bbox_pred.weight"].shape == (2, 8)
    import_weights(str(file), tmp_path / "imported", task="spots", plugins=PLUGINS)
    ours, theirs = load_run(unbroken, "ema"), load_run(tmp_path / "imported")
    assert theirs.model.name == "spotter_small"
    assert theirs.labels == {"kinds": ["spot"]}
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    (scores,) = evaluate(read_config(CONFIG), tmp_path / "imported")["sets"]
    assert scores["raw"] == json.loads((unbroken / "results.json").read_text())["ema"]
    counted = {**tensors, "bn.num_batches_tracked": np.array(7)}
    jax.tree.map(np.testing.assert_array_equal, mo.from_torch(ours.model, counted), ours.variables)


@pytest.mark.run
def test_the_page_of_a_run_is_written_again(unbroken, tmp_path, capsys):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert cli(["report", str(tmp_path / "run")]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().count("spots of kind spot") == 1


@pytest.mark.nightly
def test_two_processes_equal_one(unbroken, tmp_path):
    # Two devices with half the rows each make as many microbatches as one device.
    arguments = train_arguments(tmp_path / "run", microbatch_size=12)
    codes, said = finish_all(start_all(2, arguments[1:]))
    assert codes == [0, 0], said
    ours, theirs = (
        [(record["step"], *(record[f"loss/{term}"] for term in Spots.loss_terms)) for record in records(run, "train")]
        for run in (tmp_path / "run", unbroken)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    ours, theirs = (json.loads((run / "results.json").read_text())["ema"] for run in (tmp_path / "run", unbroken))
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert ours["count"] == 360


# How a plugin is found.


@pytest.mark.run
def test_a_plugin_is_found_by_its_entry_point_and_data_workers_do_without_models(tmp_path):
    folder = tmp_path / "toy-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{plugins.ENTRY_POINTS}]\ntoy = {PLUGINS[0]}\n")
    program = (
        "import sys, tests.toy.records; assert not {'flax', 'mambaout_jax.models'} & sys.modules.keys()\n"
        "import mambaout_jax as mo; from mambaout_jax.tasks.registry import get_task\n"
        "print([name for name in mo.list_models() if name.startswith('spotter')], get_task('spots').name)"
    )
    done = run_program("-c", program, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['spotter_small', 'spotter_wide'] spots\n"


@pytest.mark.parametrize("task", [Classification, Spots])
def test_a_task_keeps_the_signatures_of_the_base_class(task):
    members = {name: member for name, member in vars(Task).items() if not name.startswith("_")}
    methods = {name: member for name, member in members.items() if name not in Task.__annotations__}
    for name in (*Task.__annotations__, *methods):
        assert hasattr(task, name), name
    for name, method in methods.items():
        names = [list(inspect.signature(getattr(of, name)).parameters) for of in (Task, task)]
        assert names[0] == names[1], name
        assert isinstance(inspect.getattr_static(task, name), type(method)), name


# What a step computes.

PARTS = 4
KEY = jax.random.key(3)


@functools.cache
def spots_and_model():
    config = read_config(CONFIG, ["--config.spots.negatives=0.3"])
    task = config.build_task()
    model = task.build_model({"kinds": ["spot"]})
    return task, model, jax.jit(model.init)(jax.random.key(1))


def random_batch(size=64):
    """Make images with none to four spots; rows that come later have more of them."""
    rng = np.random.default_rng(0)
    counts = np.minimum(rng.integers(0, MAX_SPOTS, size) + np.arange(size) // (size // 2), MAX_SPOTS)
    return {
        "image": rng.integers(0, 256, (size, SIDE, SIDE, 1), dtype=np.uint8),
        "spots": {
            "place": rng.random((size, MAX_SPOTS, 2), dtype=np.float32),
            "valid": np.arange(MAX_SPOTS) < counts[:, None],
        },
    }


def keep_gradient():
    """Build the optimizer whose state is the last gradient and which changes nothing."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )


def step_of_program(parts, mesh):
    task, model, variables = spots_and_model()
    optimizer = keep_gradient()
    step = make_train_step(task, model, optimizer, lambda step: step * 0.0, grad_accum_steps=parts, ema_decay=None)
    with jax.set_mesh(mesh):
        state = TrainState(jnp.int32(0), variables, None, optimizer.init(variables["params"]))
        arguments = jax.device_put((state, init_step_metrics(task.loss_terms)), distributed.replicated(mesh))
        batch = jax.device_put(random_batch(), distributed.batch_sharding(mesh))
        state, metrics = jax.jit(step)(*arguments, batch, jax.device_put(KEY, distributed.replicated(mesh)))
    return jax.device_get((metrics.loss, metrics.loss_terms, state.opt_state, state.variables["batch_stats"]))


def step_of_loop(parts):
    """Sum numerators and denominators over microbatches on one device, and differentiate the sum of quotients.

    Returns:
        What `step_of_program` does, and the denominators of the microbatches.
    """
    task, model, variables = spots_and_model()
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(KEY, 0))
    batch = task.prepare_batch(model, jax.tree.map(jnp.asarray, random_batch()), prepare_key)
    keys = [loss_key] if parts == 1 else list(jax.random.split(loss_key, parts))

    def loss(params):
        stats, every = variables["batch_stats"], []
        for part, key in enumerate(keys):
            rows = jax.tree.map(lambda x, part=part: x[part::parts], batch)
            terms, stats = task.train_loss(model, {"params": params, "batch_stats": stats}, rows, key)
            every.append(terms)
        values = {
            name: sum(terms[name].numerator for terms in every) / sum(terms[name].denominator for terms in every)
            for name in task.loss_terms
        }
        denominators = {name: [terms[name].denominator for terms in every] for name in task.loss_terms}
        return sum(values.values()), (values, stats, denominators)

    grad_fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (values, stats, denominators)), gradient = grad_fn(variables["params"])
    return jax.device_get((total, values, gradient, stats)), jax.device_get(denominators)


def largest_difference(ours, theirs):
    """Compute the largest difference as a share of the largest value of its array."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), ours, theirs)))


def compare() -> None:
    """Print the denominators of the microbatches, and how far steps are from the loop, by number of microbatches."""
    found = {}
    for parts, meshes in ((1, [(1, 4)]), (PARTS, [(1, 1), (1, 4), (2, 4)])):
        expected, denominators = step_of_loop(parts)
        differences = {}
        for fsdp, count in meshes:
            step = step_of_program(parts, distributed.make_mesh(fsdp, jax.devices()[:count]))
            names = ("loss", "terms", "gradient", "batch_stats")
            differences[f"fsdp {fsdp} on {count}"] = dict(
                zip(names, map(largest_difference, step, expected), strict=True)
            )
        found[parts] = {name: list(map(float, sums)) for name, sums in denominators.items()}, differences
    print(json.dumps(found))


@pytest.mark.run
def test_steps_on_one_and_four_devices_equal_a_plain_loop_over_microbatches():
    shares = random_batch()["spots"]["valid"].reshape(4, -1).sum(1)
    assert len(set(shares.tolist())) == 4, "the devices' shares of a denominator have to differ"
    program = "from tests.test_extension import compare; compare()"
    flags = "--xla_force_host_platform_device_count=4"
    done = run_program("-c", program, XLA_FLAGS=flags, PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert done.returncode == 0, done.stderr
    for parts, (denominators, differences) in json.loads(done.stdout).items():
        assert all(len(set(sums)) == int(parts) for sums in denominators.values()), "they have to differ"
        assert all(share < 1e-5 for mesh in differences.values() for share in mesh.values()), differences
