from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

import mambaout_jax as mo
from mambaout_jax import distributed
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.state import init_state
from mambaout_jax.tasks.api import Metric
from tests.marks import slow_but

METRIC = Metric("top1", "top-1", "%")


def model_of(**options):
    return mo.create_model("mambaout_femto", img_size=32, **{"num_classes": 3, "depths": (1,), "dims": (8,), **options})


def init_of(model, *, ema=True):
    return lambda key: init_state(model, optax.adamw(1e-3), key, ema=ema)


def placed():
    return distributed.replicated(distributed.make_mesh())


def abstract_state(model, *, ema=True):
    return distributed.sharded_shapes(init_of(model, ema=ema), jax.random.key(0), sharding=placed())


@pytest.fixture(scope="module")
def state():
    drawn = jax.jit(init_of(model_of()), out_shardings=placed())(jax.random.key(0))
    # Weights and their average differ, as they do in a run.
    return replace(drawn, ema=jax.tree.map(lambda leaf: leaf + 1, drawn.ema))


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path / "checkpoints")


def save(directory, state, steps, metric=METRIC):
    checkpoints = Checkpoints(directory, metric)
    for step, top1 in steps:
        checkpoints.save(replace(state, step=jnp.int32(step)), {"note": step}, top1)
    checkpoints.close()


def break_files(directory, step, item, content):
    for path in (Path(directory) / str(step) / item).rglob("*"):
        if path.is_file():
            path.write_bytes(content)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def test_restored_state_has_the_same_bits_and_structure(directory, state):
    save(directory, state, [(7, None)])
    restored, metadata = Checkpoints(directory).restore_state(abstract_state(model_of()))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same(restored, replace(state, step=jnp.int32(7)))
    assert metadata == {"note": 7}


def test_latest_two_and_best_are_kept(directory, state):
    save(directory, state, [(1, 50.0), (2, 90.0), (3, 80.0), (4, None), (5, 85.0)])
    assert Checkpoints(directory).steps() == [2, 4, 5]


@pytest.mark.slow
def test_best_of_a_metric_that_falls_is_the_lowest(directory, state):
    falling = Metric("error", "error", higher_is_better=False)
    save(directory, state, [(1, 50.0), (2, 10.0), (3, 80.0), (4, None), (5, 15.0)], falling)
    assert Checkpoints(directory).steps() == [2, 4, 5]


@pytest.mark.slow
def test_best_is_remembered_over_restarts(directory, state):
    save(directory, state, [(1, 50.0), (2, 90.0), (3, 80.0)])
    save(directory, state, [(4, 85.0), (5, None), (6, None)])
    assert Checkpoints(directory).steps() == [2, 5, 6]


@pytest.mark.slow
def test_step_saved_before_its_evaluation_can_still_be_the_best(directory, state):
    save(directory, state, [(1, None), (2, None)])
    save(directory, state, [(2, 90.0), (3, None), (4, None), (5, 80.0)])
    assert Checkpoints(directory).steps() == [2, 4, 5]


@pytest.mark.slow
def test_step_is_not_deleted_while_its_score_is_written(directory, state, monkeypatch):
    save(directory, state, [(1, None), (2, None)])
    checkpoints = Checkpoints(directory, METRIC)
    monkeypatch.setattr(type(checkpoints._manager), "delete", None)
    monkeypatch.setattr(type(checkpoints._manager), "save", None)
    checkpoints.save(replace(state, step=jnp.int32(2)), {"note": "evaluated"}, 90.0)
    checkpoints.close()
    restored, metadata = Checkpoints(directory).restore_state(abstract_state(model_of()))
    assert (int(restored.step), metadata) == (2, {"note": "evaluated"})
    assert_same(restored, replace(state, step=jnp.int32(2)))


def test_nothing_saved_restores_nothing(directory):
    assert Checkpoints(directory).restore_state(abstract_state(model_of())) is None


@pytest.mark.slow
@pytest.mark.parametrize("item", slow_but(["params"], ["params", "optimizer", "metadata", "ema_params"]))
@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["truncated", "overwritten"])
def test_newest_that_can_be_read_is_used(directory, state, item, content, caplog):
    save(directory, state, [(1, None), (2, None)])
    break_files(directory, 2, item, content)
    checkpoints = Checkpoints(directory)
    restored, _ = checkpoints.restore_state(abstract_state(model_of()))
    assert int(restored.step) == 1
    assert "checkpoints/2 cannot be read" in caplog.text
    checkpoints.save(replace(state, step=jnp.int32(2)), {"note": "again"}, None)
    checkpoints.close()
    restored, metadata = Checkpoints(directory).restore_state(abstract_state(model_of()))
    assert (int(restored.step), metadata) == (2, {"note": "again"})
    assert (directory.parent / "unreadable.2").exists()


@pytest.mark.slow
def test_step_whose_metadata_lack_a_name_is_passed_over(directory, state):
    save(directory, state, [(1, None), (2, None)])
    (directory / "2" / "metadata" / "metadata").write_text("{}")
    restored, metadata = Checkpoints(directory).restore_state(abstract_state(model_of()), metadata=("note",))
    assert int(restored.step) == 1
    assert "note" in metadata


@pytest.mark.slow
def test_step_that_lost_an_item_is_passed_over(directory, state):
    save(directory, state, [(1, None), (2, None)])
    (directory / "2" / "optimizer").rmtree()
    restored, _ = Checkpoints(directory).restore_state(abstract_state(model_of()))
    assert int(restored.step) == 1


@pytest.mark.slow
def test_nothing_readable_is_an_error(directory, state):
    save(directory, state, [(1, None)])
    break_files(directory, 1, "params", b"")
    for _ in range(2):  # the second time too: a run must not restart silently
        with pytest.raises(RunError, match="none of the checkpoints"):
            Checkpoints(directory).restore_state(abstract_state(model_of()))


@pytest.mark.slow
def test_another_model_is_refused_with_every_difference(directory, state):
    save(directory, state, [(1, None)])
    other = model_of(num_classes=4, depths=(2,), stem_mid_norm=False)
    with pytest.raises(RunError) as refusal:
        Checkpoints(directory).restore_state(abstract_state(other))
    for words in (
        "head.fc.bias is float32[3], expected float32[4]",
        "stages.0.blocks.1.fc1.weight is missing",
        "stem.norm1.weight is unexpected",
    ):
        assert words in str(refusal.value)


@pytest.mark.slow
def test_missing_average_is_refused(directory, state):
    save(directory, replace(state, ema=None), [(1, None)])
    with pytest.raises(RunError, match="no 'ema_params'"):
        Checkpoints(directory).restore_state(abstract_state(model_of()))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_inference_restores_the_weights_that_it_names(directory, state, weights):
    save(directory, state, [(3, None)])
    model = model_of()
    abstract = distributed.sharded_shapes(model.init, jax.random.key(0), sharding=placed())
    step, variables = Checkpoints(directory, read_only=True).restore_variables(abstract, [weights])
    assert step == 3
    assert_same(variables[weights], state.ema if weights == "ema" else state.variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "content"),
    [
        (1, b""),
        *((2, each) for each in (b"", b'{"x', b"[]", b"{}", b"\xff", b'{"top1_ema": "x"}', b'{"top1_ema": NaN}')),
    ],
)
def test_a_damaged_score_neither_prevents_reading_nor_saving(directory, state, step, content):
    save(directory, state, [(1, 0.5), (2, 0.6)])
    break_files(directory, step, "metrics", content)
    found = Checkpoints(directory, read_only=True).restore_variables(abstract_state(model_of()).variables, ["raw"])
    assert found[0] in (2, 3 - step)  # orbax reads a step with its score
    save(directory, state, [(3, 0.1), (4, 0.2)])
    checkpoints = Checkpoints(directory, METRIC)
    assert checkpoints.steps() == [3 - step, 3, 4]
    checkpoints.close()


@pytest.mark.slow
def test_a_checkpoint_that_lost_its_average_is_passed_over(directory, state):
    save(directory, state, [(1, None), (2, None)])
    (directory / "2" / "ema_params").rmtree()
    abstract = abstract_state(model_of())
    assert Checkpoints(directory, read_only=True).restore_variables(abstract.variables, ["ema"])[0] == 1
    assert Checkpoints(directory, read_only=True).restore_variables(abstract.variables, ["raw"])[0] == 2
    assert int(Checkpoints(directory).restore_state(abstract)[0].step) == 1
