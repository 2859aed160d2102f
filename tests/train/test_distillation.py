"""A run learns from the predictions of a trained model, of any family, for the same images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax import distributed
from mambaout_jax.data import DataError
from mambaout_jax.models import InputSpec
from mambaout_jax.plan.plan import state_bytes
from mambaout_jax.plan.program import Dataset, planned_program
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.state import TrainState
from mambaout_jax.run.teacher import load_teacher
from mambaout_jax.run.workdir import load_environment
from mambaout_jax.tasks import registry
from mambaout_jax.tasks.api import LossTerm
from mambaout_jax.tasks.classification.distillation import match_channels
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.train import loop
from mambaout_jax.train.inputs import open_batches
from mambaout_jax.train.loop import train
from mambaout_jax.train.step import init_step_metrics, make_train_step
from mambaout_jax.weights.folder import write_folder
from tests.train import tiny, written_run
from tests.train.runs import assert_same_weights, records
from tests.train.test_vit import MODEL as VIT

KEY = jax.random.key(1)
LICENSE = "cc-by-nc-4.0"
DIGITS = tuple(map(str, range(10)))
GRAY = InputSpec((0.5,), (0.25,), (2, 3), 1.0, "center", "bicubic")


class Linear:
    """A model whose logits are linear in the normalized pixels; the key of training changes nothing."""

    def __init__(self, spec):
        self.input_spec, self.in_chans = spec, len(spec.mean)

    def apply(self, variables, images):
        return images.reshape(len(images), -1) @ variables["params"]

    def apply_train(self, variables, images, *, key):
        return self.apply(variables, images), {}


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PIXELS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 3, 1)), jnp.float32)


def task_of(weight, temperature=1.0, **changes):
    changes |= {"loss.teacher": "runs/x", "loss.teacher_weight": weight, "loss.teacher_temperature": temperature}
    return tiny.config(**changes).build_task()


def loss_of(task, teacher, w_teacher):
    """Return the loss of `Linear` as a function of its weights."""
    model = Linear(GRAY)
    rows = {"image": GRAY.normalize(PIXELS), "target": jnp.eye(4)[jnp.arange(8) % 4]}

    def loss(w):
        batch = rows
        if task.teacher():
            batch = rows | {"teacher_targets": task.teacher_targets(teacher, {"params": w_teacher}, model, rows)}
        terms, _ = task.train_loss(model, {"params": w}, batch, KEY)
        assert terms.keys() == set(task.loss_terms)
        return sum(term.numerator / term.denominator for term in terms.values())

    return jax.jit(jax.value_and_grad(loss))


def test_weight_0_is_the_loss_without_a_teacher():
    w, w_teacher = drawn(1, 6, 4), drawn(2, 6, 4)
    plain = loss_of(tiny.config().build_task(), None, None)(w)
    for ours, expected in zip(loss_of(task_of(0.0), Linear(GRAY), w_teacher)(w), plain, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (1.0, 4.0), (0.3, 2.0)])
def test_loss_and_gradient_are_those_of_the_formula(weight, temperature):
    w, w_teacher = drawn(1, 6, 4), drawn(2, 6, 4)
    x, targets = np.asarray(GRAY.normalize(PIXELS)).reshape(8, 6), np.eye(4)[np.arange(8) % 4]

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    p, q, student = softmax(x @ w_teacher / temperature), softmax(x @ w / temperature), softmax(x @ w)
    divergence = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    expected = (1 - weight) * -(targets * np.log(student)).sum(1).mean() + weight * divergence
    # Of the logits: that of the divergence is T (q - p).
    of_logits = (1 - weight) * (student - targets) + weight * temperature * (q - p)
    loss, gradient = loss_of(task_of(weight, temperature), Linear(GRAY), w_teacher)(w)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, x.T @ of_logits / 8, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_equal_to_the_student_teaches_nothing(temperature):
    w = drawn(1, 6, 4)
    for value in loss_of(task_of(1.0, temperature), Linear(GRAY), w)(w):
        np.testing.assert_allclose(value, np.zeros_like(value), atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (((0.5,), (0.25,)), ((0.1,), (0.3,))),
        (((0.5,), (0.25,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1,), (0.3,))),
    ],
    ids=["gray", "gray to RGB", "RGB to gray"],
)
def test_the_teacher_sees_the_images_in_its_own_normalization_and_channels(ours, theirs):
    ours, theirs = (GRAY._replace(mean=mean, std=std) for mean, std in (ours, theirs))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 2, 3, len(ours.mean)), dtype=np.uint8)
    own = [np.asarray(convert(image, len(theirs.mean))) for image in pixels]
    own = np.stack(own).reshape(8, 2, 3, -1)
    teacher, w = Linear(theirs), drawn(2, 6 * len(theirs.mean), 4)
    batch = {"image": ours.normalize(jnp.asarray(pixels))}
    targets = task_of(1.0).teacher_targets(teacher, {"params": w}, Linear(ours), batch)
    logits = np.asarray(theirs.normalize(jnp.asarray(own))).reshape(8, -1) @ w
    # Pillow rounds gray pixels.
    np.testing.assert_allclose(targets, jax.nn.softmax(logits), atol=0.02 if own.size < pixels.size else 1e-5)
    assert np.abs(match_channels(jnp.asarray(pixels, jnp.float32), len(theirs.mean)) - own).max() <= 0.5001


def convert(image, channels):
    """Convert pixels (h, w, c) by Pillow, as a dataset does."""
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return image.convert({1: "L", 3: "RGB"}[channels])


class Taught:
    """A linear model whose loss has the product of its outputs with those of a teacher."""

    name = "taught"
    loss_terms = ("product",)

    def prepare_batch(self, model, batch, key):
        return batch

    def teacher_targets(self, teacher, variables, model, batch):
        assert teacher == "the teacher"
        return batch["x"] @ variables["params"]["w"]

    def train_loss(self, model, variables, batch, key):
        outputs = batch["x"] @ variables["params"]["w"]
        return {"product": LossTerm((outputs * batch["teacher_targets"]).sum(), len(outputs))}, {}


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
def test_weights_of_the_teacher_are_an_argument_of_the_step_without_gradient(grad_accum_steps):
    x, w = drawn(0, 8, 3), drawn(1, 3)
    optimizer = optax.sgd(1.0)
    step = make_train_step(
        Taught(),
        None,
        optimizer,
        lambda step: 1.0,
        grad_accum_steps=grad_accum_steps,
        ema_decay=None,
        teacher="the teacher",
    )
    state = TrainState(jnp.int32(0), {"params": {"w": w}, "batch_stats": {}}, None, optimizer.init({"w": w}))
    run = jax.jit(step)
    for w_teacher in (drawn(2, 3), w):
        teacher = {"params": {"w": w_teacher}, "batch_stats": {}}
        after, metrics = run(state, init_step_metrics(), {"x": x}, KEY, teacher)
        np.testing.assert_allclose(w - after.variables["params"]["w"], x.T @ (x @ w_teacher) / 8, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics.loss, ((x @ w) * (x @ w_teacher)).mean(), rtol=1e-5)
    assert run._cache_size() == 1


def load(source, labels=DIGITS, **changes):
    config = tiny.config(**{"loss.teacher": str(source)} | changes)
    task, labels = config.build_task(), {"class_names": list(labels)}
    return load_teacher(task, task.build_model(labels), labels)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The workdir of a model of another family, with RGB images of another size, and its weights."""
    workdir = tmp_path_factory.mktemp("teacher") / "vit"
    config = tiny.config().with_model(VIT | {"in_chans": 3, "img_size": 48, "drop_rate": 0.5, "mean": (0.2, 0.4, 0.6)})
    _, model, weights = written_run.write(workdir, DIGITS, config=config)
    return workdir, model, weights["ema"]


@pytest.mark.slow
def test_a_teacher_of_another_family_and_size_is_resampled(vit):
    workdir, model, weights = vit
    teacher = load(workdir)
    assert teacher.model.input_spec == model.input_spec._replace(size=(32, 32))
    assert teacher.description == f"deit_tiny_patch16_224, the EMA weights of step 7 in {workdir}"
    resized = mo.weights.resample_variables(teacher.model, weights, (48, 48))
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, resized)
    assert load(workdir, **{"model.dtype": "bfloat16"}).model.options["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_folder_of_pytorch_weights_is_a_teacher(vit, tmp_path):
    _, model, weights = vit
    write_folder(tmp_path / "folder", model, mo.to_torch(model, weights), class_names=DIGITS, license=LICENSE)
    teacher, run = load(tmp_path / "folder"), load(vit[0])
    assert teacher.fingerprint == run.fingerprint
    assert teacher.model.input_spec == run.model.input_spec
    assert teacher.record["teacher_license"] == LICENSE


class Sorting(Classification):
    """Another task."""

    name = "sorting"


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"num_classes": 1000}, r"^the teacher has 1,000 classes but the dataset has 10; expected a teacher with the"),
        ({"class_names": DIGITS[::-1]}, r"^class 0 is '9' in the teacher but '0' in the dataset; expected a teacher"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(theirs, words):
    with pytest.raises(TaskError, match=words):
        task_of(1.0).check_teacher(Linear(GRAY), theirs, {"class_names": DIGITS})


@pytest.mark.slow
def test_a_teacher_that_does_not_fit_is_refused_in_one_sentence(vit, tmp_path, monkeypatch):
    with pytest.raises(
        RunError, match=r"^config\.loss\.teacher cannot be loaded: .*nowhere does not exist; expected a weights"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"^config\.loss\.teacher is '.*vit': the teacher has 10 classes but"):
        load(vit[0], DIGITS[:3])
    with pytest.raises(RunError, match=r"does not take images of 36x36 px \(.*\); use another teacher, or another"):
        load(vit[0], **{"model.img_size": 36})
    monkeypatch.setattr(registry, "BUILT_IN", (Classification, Sorting))
    written_run.write(tmp_path / "sorting", DIGITS, task="sorting")
    with pytest.raises(RunError, match=r"was trained for the task 'sorting'; expected one for 'classification'"):
        load(tmp_path / "sorting")


@pytest.mark.slow
def test_class_names_are_compared_only_where_both_are_known(tmp_path):
    written_run.write(tmp_path / "run", DIGITS)
    environment = {"labels": {"num_classes": 10, "class_names": None}}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    assert load(tmp_path / "run").labels == environment["labels"]


@pytest.mark.slow
def test_a_plan_includes_the_teacher(vit):
    config = tiny.config(**{"loss.teacher": str(vit[0])})
    dataset = Dataset(1437, {"num_classes": 10})
    _, program = planned_program(config, config.build_task(), dataset, distributed.make_mesh())
    assert state_bytes(program)["teacher"] == sum(leaf.nbytes for leaf in jax.tree.leaves(load(vit[0]).variables))


@pytest.fixture
def interrupted(monkeypatch):
    """Return a function that trains until the data pipeline fails."""

    def three_batches(config, *_, start_step):
        batches = open_batches(config)
        yield from (next(batches) for _ in range(start_step + 4))
        raise DataError("record 7 does not decode")

    def run(config, workdir):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "training_batches", three_batches)
            with pytest.raises(DataError, match="record 7"):
                train(config, workdir)

    return run


@pytest.mark.run
def test_a_run_with_a_teacher_resumes_to_the_same_bits_and_only_with_the_same_teacher(
    interrupted, tmp_path, capfd, monkeypatch
):
    teacher, moved, student = (tmp_path / name for name in ("teacher", "moved", "student"))
    written_run.write(teacher, DIGITS)
    (teacher / "environment.json").write_text(json.dumps({"labels": {"class_names": DIGITS}, "license": LICENSE}))
    changes = {"loss.teacher": str(teacher), "loss.teacher_temperature": 2.0, "optim.layer_decay": 0.9}
    changes |= {"loss.mesa": 0.5, "loss.mesa_start": 0.0}
    train(tiny.config(**changes), tmp_path / "unbroken")
    description = f"mambaout_femto, the EMA weights of step 7 in {teacher}"
    said = capfd.readouterr().err
    assert f"; teacher: {description}\n" in said
    assert f"the weights of mambaout_femto have the license {LICENSE}, which forbids commercial use" in said
    environment = load_environment(tmp_path / "unbroken")
    assert (environment["teacher"], environment["teacher_license"]) == (description, LICENSE)
    assert "license" not in environment, "the student has no parameters of the teacher"
    for record in records(tmp_path / "unbroken", "train"):
        terms = [record[f"loss/{name}"] for name in ("cross_entropy", "teacher", "mesa")]
        assert record["loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert min(terms) > 0

    interrupted(tiny.config(**changes), student)
    with pytest.raises(RunError, match=rf"^the run was trained with another teacher: it was {description}, is none; "):
        train(tiny.config(**changes | {"loss.teacher": None}), student)
    shutil.move(teacher, moved)
    written_run.write(teacher, DIGITS, **{"optim.ema_decay": None})  # other weights in the same place
    with pytest.raises(RunError, match=r"is mambaout_femto, the weights of step 7 in .*/teacher; use the same"):
        train(tiny.config(**changes), student)
    assert load_environment(student) == environment | {"command": load_environment(student)["command"]}
    train(tiny.config(**changes | {"loss.teacher": str(moved)}), student)
    assert_same_weights(student, tmp_path / "unbroken")
