import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mambaout_jax as mo
from mambaout_jax import distributed
from mambaout_jax.models import InputSpec
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.state import TrainState
from mambaout_jax.tasks.api import LossTerm
from mambaout_jax.tasks.classification.losses import kl_divergence
from mambaout_jax.tasks.classification.metrics import rank_of_labels
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.train import program
from mambaout_jax.train.optimizer import adamw
from mambaout_jax.train.step import init_step_metrics, make_train_step
from tests.train import tiny

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def model():
    return mo.create_model("mambaout_femto", img_size=32, in_chans=1, num_classes=4, depths=(1, 1), dims=(8, 16))


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 32, 32, 1), dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(0, 4, size), jnp.int32),
    }


@functools.cache
def initial(model):
    return jax.jit(model.init)(KEY)


PLAIN = {"augment.pad": 0, "augment.rotate_degrees": 0.0, "augment.label_smoothing": 0.0}


def task_of(**changes):
    return tiny.config(**PLAIN | changes).build_task()


def step_of(model, optimizer=None, *, grad_accum_steps=1, ema_decay=None, augmentation=None):

    def rate(step):
        return jnp.float32(1e-2)

    optimizer = optimizer or adamw(
        rate, weight_decay=0.05, b1=0.9, b2=0.999, eps=1e-8, clip_grad_norm=None, no_decay=frozenset()
    )
    task = task_of(**augmentation or {})
    step = make_train_step(task, model, optimizer, rate, grad_accum_steps=grad_accum_steps, ema_decay=ema_decay)
    variables = initial(model)
    average = None if ema_decay is None else variables
    return jax.jit(step), TrainState(jnp.int32(0), variables, average, optimizer.init(variables["params"]))


@pytest.fixture(scope="module")
def plain(model):
    return step_of(model)


def gradient_of(model, **options):
    """Recover the gradient from a step of SGD with learning rate 1."""
    step, state = step_of(model, optax.sgd(1.0), **options)
    after, metrics = step(state, init_step_metrics(), batch(), KEY)
    return jax.tree.map(np.subtract, state.variables["params"], after.variables["params"]), metrics


@pytest.mark.slow
def test_accumulation_equals_the_batch_at_once(model):
    whole, metrics = gradient_of(model)
    for parts in (2, 4):
        split, split_metrics = gradient_of(model, grad_accum_steps=parts)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
            # Both were recovered by a subtraction from parameters of up to 1.
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max() + 1e-7)
        np.testing.assert_allclose(split_metrics.loss, metrics.loss, rtol=1e-6)


class TwoTerms:
    """A linear model whose loss is a mean over rows plus a mean over boxes, with several boxes per row."""

    name = "two terms"
    loss_terms = ("rows", "boxes")

    def prepare_batch(self, model, batch, key):
        return batch

    def train_loss(self, model, variables, batch, key):
        outputs = batch["x"] @ variables["params"]["w"]
        rows, boxes = (outputs - batch["y"]) ** 2, batch["boxes"]
        terms = {
            "rows": LossTerm(rows.sum(), len(rows)),
            "boxes": LossTerm(0.5 * (boxes * jnp.abs(outputs)).sum(), boxes.sum()),
        }
        return terms, variables["batch_stats"]


def two_terms(w, batch):
    """Compute both terms by the plain formula over the whole batch."""
    outputs, boxes = batch["x"] @ w, batch["boxes"]
    total = boxes.sum()
    return {
        "rows": ((outputs - batch["y"]) ** 2).mean(),
        "boxes": 0.5 * (boxes * jnp.abs(outputs)).sum() / jnp.where(total == 0, 1, total),
    }


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
@pytest.mark.parametrize("boxes", [(3, 0, 1, 0, 0, 5, 2, 0), (0,) * 8], ids=["some", "none"])
def test_each_term_is_divided_by_its_sum_over_the_whole_batch(boxes, grad_accum_steps):
    # With four microbatches of rows i and i + 4, the last one has no boxes.
    rng = np.random.default_rng(0)
    w, x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3,), (8, 3), (8,)))
    rows = {"x": x, "y": y, "boxes": jnp.asarray(boxes, jnp.int32)}
    optimizer = optax.sgd(1.0)
    step = make_train_step(
        TwoTerms(), None, optimizer, lambda step: 1.0, grad_accum_steps=grad_accum_steps, ema_decay=None
    )
    state = TrainState(jnp.int32(0), {"params": {"w": w}, "batch_stats": {}}, None, optimizer.init({"w": w}))
    after, metrics = jax.jit(step)(state, init_step_metrics(("rows", "boxes")), rows, KEY)
    expected = two_terms(w, rows)
    gradient = jax.grad(lambda w: sum(two_terms(w, rows).values()))(w)
    np.testing.assert_allclose(w - after.variables["params"]["w"], gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, sum(expected.values()), rtol=1e-6)
    assert metrics.loss_terms.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics.loss_terms[name], value, rtol=1e-6)


class Ratio:
    """A loss whose denominator depends on the parameters too."""

    name = "ratio"
    loss_terms = ("ratio",)

    def prepare_batch(self, model, batch, key):
        return batch

    def train_loss(self, model, variables, batch, key):
        w = variables["params"]["w"]
        term = LossTerm((batch["x"] @ w).sum(), 1.0 + jnp.square(w).sum() * len(batch["x"]))
        return {"ratio": term}, variables["batch_stats"]


def step_of_task(task, grad_accum_steps):
    optimizer = optax.sgd(1.0)
    step = make_train_step(task, None, optimizer, lambda step: 1.0, grad_accum_steps=grad_accum_steps, ema_decay=None)
    params = {"w": jnp.asarray([0.5, -1.0, 2.0])}
    state = TrainState(jnp.int32(0), {"params": params, "batch_stats": {}}, None, optimizer.init(params))
    return step, state


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
def test_the_gradient_is_that_of_the_numerator_alone(grad_accum_steps):
    step, state = step_of_task(Ratio(), grad_accum_steps)
    x, w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32), state.variables["params"]["w"]
    after, _ = jax.jit(step)(state, init_step_metrics(), {"x": x}, KEY)
    expected = x.sum(0) / (grad_accum_steps + 8 * jnp.square(w).sum())
    np.testing.assert_allclose(w - after.variables["params"]["w"], expected, rtol=1e-5)


def test_loss_terms_that_a_task_does_not_declare_are_an_error():
    task = Ratio()
    task.loss_terms = ("ratio", "other")
    step, state = step_of_task(task, 1)
    with pytest.raises(
        TaskError, match=r"returned the loss terms \['ratio'\]; expected its loss_terms \('ratio', 'other'\)"
    ):
        step(state, init_step_metrics(task.loss_terms), {"x": jnp.ones((8, 3))}, KEY)


class Distilled:
    """A linear model whose loss has the product of its outputs with those of the average."""

    name = "distilled"
    loss_terms = ("rows", "product")

    def __init__(self):
        self.evaluated = []

    def prepare_batch(self, model, batch, key):
        return batch

    def ema_targets(self, model, variables, batch):
        jax.debug.callback(self.evaluated.append, len(batch["x"]))
        return batch["x"] @ variables["params"]["w"]

    def train_loss(self, model, variables, batch, key):
        outputs = batch["x"] @ variables["params"]["w"]
        terms = {
            "rows": LossTerm(jnp.square(outputs).sum(), len(outputs)),
            "product": LossTerm((outputs * batch.get("ema_targets", 0.0)).sum(), len(outputs)),
        }
        return terms, variables["batch_stats"]


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
@pytest.mark.parametrize("average", ["the weights", "other weights"])
def test_targets_from_the_average_have_no_gradient_and_are_computed_from_their_step_on(average, grad_accum_steps):
    x, w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32), jnp.asarray([0.5, -1.0, 2.0])
    w_ema = w if average == "the weights" else jnp.asarray([1.0, 0.5, -3.0])
    task, optimizer = Distilled(), optax.sgd(1.0)
    step = make_train_step(
        task,
        None,
        optimizer,
        lambda step: 1.0,
        grad_accum_steps=grad_accum_steps,
        ema_decay=0.9,
        distillation_step=5,
    )
    step = jax.jit(step)
    variables, ema = ({"params": {"w": leaf}, "batch_stats": {}} for leaf in (w, w_ema))
    plain, both = 2 * x.T @ (x @ w) / 8, 2 * x.T @ (x @ w) / 8 + x.T @ (x @ w_ema) / 8
    for number, gradient, term, evaluated in ((4, plain, 0.0, 0), (5, both, ((x @ w) * (x @ w_ema)).mean(), 8)):
        state = TrainState(jnp.int32(number), variables, ema, optimizer.init(variables["params"]))
        after, metrics = step(state, init_step_metrics(task.loss_terms), {"x": x}, KEY)
        jax.effects_barrier()
        np.testing.assert_allclose(w - after.variables["params"]["w"], gradient, rtol=1e-5)
        np.testing.assert_allclose(metrics.loss_terms["product"], term, rtol=1e-5)
        assert sum(task.evaluated) == evaluated


def test_a_step_without_distillation_never_evaluates_the_average():
    task, optimizer, params = Distilled(), optax.sgd(1.0), {"w": jnp.ones(3)}
    step = make_train_step(task, None, optimizer, lambda step: 1.0, grad_accum_steps=1, ema_decay=0.9)
    variables = {"params": params, "batch_stats": {}}
    state = TrainState(jnp.int32(0), variables, variables, optimizer.init(params))
    text = str(jax.make_jaxpr(step)(state, init_step_metrics(), {"x": jnp.ones((8, 3))}, KEY))
    assert "cond[" not in text
    assert "callback" not in text


class Noisy:
    """A linear model with noise in training instead of dropout."""

    def apply(self, variables, images):
        return images.reshape(len(images), -1) @ variables["params"]

    def apply_train(self, variables, images, *, key):
        logits = self.apply(variables, images)
        return logits + jax.random.normal(key, logits.shape), {}


def test_mesa_is_the_weighted_divergence_from_predictions_of_the_average_without_noise():
    task, model = task_of(**{"loss.mesa": 0.7}), Noisy()
    rng = np.random.default_rng(0)
    images, w, w_ema = (rng.normal(size=size).astype(np.float32) for size in ((8, 2, 3, 1), (6, 4), (6, 4)))
    rows = {"image": images, "target": np.eye(4, dtype=np.float32)[np.arange(8) % 4]}

    @jax.jit
    def compute(rows):
        targets = task.ema_targets(model, {"params": w_ema}, rows)
        return task.train_loss(model, {"params": w}, {**rows, "ema_targets": targets}, KEY)[0]

    terms = compute(rows)
    noise = np.asarray(jax.random.normal(KEY, (8, 4)))
    pixels = images.reshape(8, 6)
    ours, theirs = (np.asarray(jax.nn.log_softmax(x)) for x in (pixels @ w + noise, pixels @ w_ema))
    assert terms.keys() == set(task.loss_terms)
    np.testing.assert_allclose(terms["cross_entropy"].numerator, -(rows["target"] * ours).sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["mesa"].numerator, 0.7 * (np.exp(theirs) * (theirs - ours)).sum(), rtol=1e-5)
    assert terms["mesa"].denominator == 8
    assert task_of().loss_terms == ("cross_entropy",)


def test_divergence_and_its_gradient_are_zero_for_equal_predictions_and_for_targets_of_zeros():
    compute = jax.jit(jax.value_and_grad(lambda logits, targets: kl_divergence(logits, targets).sum()))
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for targets in (probabilities, np.zeros((5, 7), np.float32)):
        for value in compute(logits, targets):
            np.testing.assert_allclose(value, np.zeros_like(value), atol=1e-6)
    assert compute(logits, np.eye(5, 7, dtype=np.float32))[0] > 1


def test_mesa_without_an_average_is_refused_before_anything_is_opened():
    config = tiny.config(**{"loss.mesa": 0.5, "optim.ema_decay": None, "data.name": "no_such_dataset"})
    words = r"^config\.loss\.mesa is 0\.5 but config\.optim\.ema_decay is unset; set it, for example with --config\."
    with pytest.raises(RunError, match=words):
        config.build_task()


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_mesa_starts_at_its_fraction_of_the_training(monkeypatch, start, first):
    config = tiny.config(num_epochs=4, **{"loss.mesa": 0.5, "loss.mesa_start": start})
    task, found = config.build_task(), []
    model = task.build_model({"num_classes": 10})
    monkeypatch.setattr(program, "make_train_step", lambda *_, distillation_step, **__: found.append(distillation_step))
    program.training_program(config, task, model, task.train_transform(model).empty(), 1437, distributed.make_mesh())
    assert found == [first]


def test_steps_lower_the_loss_and_are_counted(plain):
    step, state = plain
    losses = []
    for _ in range(12):
        state, metrics = step(state, init_step_metrics(), batch(), KEY)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.85 * losses[0]
    assert int(state.step) == 12


def test_metrics_sum_the_steps(plain):
    step, state = plain
    metrics, losses = init_step_metrics(), []
    for _ in range(3):
        _, alone = step(state, init_step_metrics(), batch(), KEY)
        state, metrics = step(state, metrics, batch(), KEY)
        losses.append(float(alone.loss))
    assert int(metrics.steps) == 3
    np.testing.assert_allclose(metrics.loss, sum(losses), rtol=1e-6)
    assert int(metrics.first_nonfinite_step) == -1


def test_first_nonfinite_step_is_recorded(plain):
    step, state = plain
    state, metrics = step(state, init_step_metrics(), batch(), KEY)
    state.variables["params"]["head"]["fc"]["bias"] = jnp.full(4, jnp.nan, jnp.float32)
    for _ in range(3):
        state, metrics = step(state, metrics, batch(), KEY)
    assert int(metrics.first_nonfinite_step) == 1
    np.testing.assert_allclose(metrics.nonfinite_learning_rate, 1e-2)
    assert np.isnan(metrics.nonfinite_loss)


@pytest.mark.slow
def test_average_follows_its_formula(model):
    step, state = step_of(model, ema_decay=0.5)

    def leaf(variables):
        return np.asarray(variables["params"]["head"]["fc"]["weight"], np.float64)

    expected = leaf(state.variables)
    for n in range(6):
        state, _ = step(state, init_step_metrics(), batch(seed=n), KEY)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * leaf(state.variables)
    np.testing.assert_allclose(leaf(state.ema), expected, rtol=1e-5, atol=1e-7)


MIXED = {
    "augment.pad": 4,
    "augment.mixup_alpha": 0.8,
    "augment.mixup_prob": 1.0,
    "augment.mixup_group": 4,
}


@pytest.mark.slow
def test_random_numbers_depend_on_step_and_key(model):
    step, state = step_of(model, augmentation=MIXED)
    first, again = (step(state, init_step_metrics(), batch(), KEY)[1].loss for _ in range(2))
    assert first == again
    later = jax.tree.map(lambda x: x, state)
    later = type(state)(state.step + 1, later.variables, later.ema, later.opt_state)
    assert step(later, init_step_metrics(), batch(), KEY)[1].loss != first
    assert step(state, init_step_metrics(), batch(), jax.random.key(2))[1].loss != first


def ragged_labels(rng, rows, num_classes, most):
    """Draw up to `most` distinct labels per row, some rows without any, padded with -1."""
    labels = np.full((rows, most), -1, np.int32)
    for row in labels:
        drawn = rng.permutation(num_classes)[: rng.integers(0, most + 1)]
        row[: len(drawn)] = drawn
    return labels


@pytest.mark.slow
def test_rank_is_the_place_of_the_best_label_in_a_stable_sort():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 10)).astype(np.float32)  # with ties
    labels = ragged_labels(rng, 200, 10, 3)
    ranks = np.asarray(rank_of_labels(jnp.asarray(logits), jnp.asarray(labels)))
    for row, given, rank in zip(logits, labels, ranks, strict=True):
        order = np.argsort(-row, kind="stable").tolist()
        if places := [order.index(label) for label in given if label >= 0]:
            assert rank == min(places)


@pytest.mark.parametrize("labels", [[0, -1], [0, 3]])
def test_nan_logits_are_never_a_hit(labels):
    logits = jnp.full((1, 6), jnp.nan)
    assert int(rank_of_labels(logits, jnp.asarray([labels]))[0]) >= 5
    # One label has a finite logit, and NaN ranks before it.
    assert int(rank_of_labels(logits.at[0, 3].set(1e9), jnp.asarray([[3, -1]]))[0]) == 5


@pytest.mark.slow
def test_evaluation_ignores_masked_rows(model):
    variables = initial(model)
    images = batch(6)
    images["label"] = images["label"][:, None]
    task, ranked = task_of(), jnp.ones(4, bool)
    step = jax.jit(lambda variables, batch: task.evaluate_batch(model, variables, batch, ranked))
    full, rows = step(variables, {**images, "mask": jnp.ones(6, bool)})
    mask = jnp.asarray([True, False, True, True, False, False])
    some, _ = step(variables, {**images, "mask": mask})
    hits = np.asarray(rows["logits"]).argmax(1) == np.asarray(images["label"])[:, 0]
    assert int(full["top1"]) == hits.sum()
    assert int(some["top1"]) == hits[np.asarray(mask)].sum()
    assert (int(full["count"]), int(some["count"])) == (6, 3)
    assert int(full["top5"]) == 6, "four classes are all among the first five"


class Identity:
    """A model whose logits are the pixels of a row."""

    input_spec = InputSpec((0.0,), (1 / 255,), (1, 20), 1.0, "center", "bicubic")

    def apply(self, variables, images):
        return images[:, 0, :, 0]


@pytest.mark.slow
@pytest.mark.parametrize("subset", [None, range(3, 12, 2)])
def test_hits_and_loss_of_several_labels_equal_a_loop_over_the_class_mask(subset):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 12, (300, 1, 20, 1), dtype=np.uint8)
    classes = np.arange(20) if subset is None else np.asarray(subset)
    labels = ragged_labels(rng, 300, len(classes), 3)
    labels = np.where(labels >= 0, classes[labels], -1)
    mask = rng.random(300) < 0.8
    sums, _ = task_of().evaluate_batch(
        Identity(),
        {},
        {"image": jnp.asarray(pixels), "label": jnp.asarray(labels), "mask": jnp.asarray(mask)},
        jnp.asarray(np.isin(np.arange(20), classes)),
    )
    mask &= (labels >= 0).any(1)
    top1 = top5 = loss = 0
    for row, given in zip(pixels[mask, 0, :, 0].astype(np.float64), labels[mask], strict=True):
        given = set(given.tolist()) - {-1}
        order = classes[np.argsort(-row[classes], kind="stable")].tolist()
        top1 += order[0] in given
        top5 += bool(given & set(order[:5]))
        log_odds = row - np.log(np.exp(row[classes]).sum())
        loss -= sum(log_odds[label] for label in given) / len(given)
    assert (int(sums["top1"]), int(sums["top5"]), int(sums["count"])) == (top1, top5, mask.sum())
    np.testing.assert_allclose(float(sums["loss"]), loss, rtol=1e-5)
