"""How a run starts, and what it saves when the data pipeline fails."""

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mambaout_jax.data import DataError
from mambaout_jax.run.config import parse_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import load_run
from mambaout_jax.train import loop
from mambaout_jax.train.inputs import open_batches
from mambaout_jax.train.loop import train
from mambaout_jax.train.recipe import differences_from_recipe
from tests.train import tiny
from tests.train.runs import records, start

STILL = {"optim.learning_rate": 0.0, "optim.warmup_learning_rate": 0.0, "optim.min_learning_rate": 0.0, "num_epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run whose EMA weights differ from its raw ones."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(tiny.config(num_epochs=1), workdir)
    return workdir


def leaves(workdir, weights):
    flat, _ = jax.tree.flatten_with_path(load_run(workdir, weights).variables)
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.run
@pytest.mark.parametrize("head", ["keep", "new"])
def test_run_starts_from_the_averaged_weights_of_another(trained, tmp_path, capfd, head):
    train(tiny.config(**STILL, init_from=str(trained), init_head=head), tmp_path / "run")
    given, raw, ema = leaves(trained, "ema"), leaves(tmp_path / "run", "raw"), leaves(tmp_path / "run", "ema")
    assert given.keys() == raw.keys()
    for name, leaf in given.items():
        np.testing.assert_array_equal(raw[name], ema[name])
        kept = head == "keep" or ".head.fc." not in name
        assert np.array_equal(leaf, raw[name]) == kept, name
    assert f"initialized from the EMA weights of step 5 in {trained}" in capfd.readouterr().err


@pytest.mark.run
def test_resumed_run_continues_with_its_own_weights(trained, tmp_path):
    train(tiny.config(**STILL, init_from=str(trained)), tmp_path / "run")
    before = leaves(tmp_path / "run", "raw")
    changed = STILL | {"num_epochs": 2, "resume": "any"}
    train(tiny.config(**changed, init_from=str(tmp_path / "nowhere")), tmp_path / "run")
    for name, leaf in leaves(tmp_path / "run", "raw").items():
        np.testing.assert_array_equal(leaf, before[name])


@pytest.mark.run
def test_weights_of_another_model_are_refused_before_anything_runs(trained, tmp_path):
    with pytest.raises(RunError, match=r"config\.model has dims \(8, 24\), not \(8, 16\)"):
        train(tiny.config(init_from=str(trained), **{"model.dims": (8, 24)}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.run
def test_run_prints_its_batch_and_its_differences_from_the_recipe(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(
        loop,
        "differences_from_recipe",
        lambda recipe, values: differences_from_recipe(replace(recipe, dataset="digits"), values),
    )
    config = tiny.config_dict(num_epochs=1, microbatch_size=100)
    with config.unlocked():
        del config.model["drop_path_rate"]  # left to the variant
    train(parse_config(config), tmp_path / "run")
    said = capfd.readouterr().err
    assert "differs from the published recipe: config.model.drop_path_rate is 0.0, the recipe's is 0.025\n" in said
    assert "256 images per step, on one device, in 4 microbatches of 64" in said
    assert re.search(
        r"differs from the published recipe: config.batch_size is 256, the recipe's is 4096; "
        r"the linear scaling rule gives config.optim.learning_rate 0.00025, the config has 0.002\n",
        said,
    )


@pytest.mark.run
def test_bad_record_ends_a_run_after_saving_without_compiling_an_evaluation(tmp_path, monkeypatch):
    def compile_evaluation(*_):
        raise AssertionError("nothing is evaluated yet")

    def three_batches(config, *_, start_step):
        batches = open_batches(config)
        yield from (next(batches) for _ in range(3))
        raise DataError("record 7 does not decode")

    monkeypatch.setattr(loop, "training_batches", three_batches)
    monkeypatch.setattr(loop.Evaluator, "_compile", compile_evaluation)
    with pytest.raises(DataError, match="record 7"):
        train(tiny.config(), tmp_path / "run")
    assert load_run(tmp_path / "run").step == 1  # two batches were prefetched


@pytest.mark.run
def test_run_whose_worker_is_killed_saves_names_it_and_ends(tmp_path):
    changes = {"num_epochs": 500, "eval_every_epochs": 500, "data.num_workers": 1, "log_every_steps": 1}
    process = start(tmp_path / "run", lambda _: len(records(tmp_path / "run", "train")) > 3, **changes)
    threads = Path("/proc", str(process.pid), "task").glob("*/children")
    children = {int(child) for thread in threads for child in thread.read_text().split()}
    (worker,) = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert f"error: data worker 0 (process {worker}) was killed by SIGKILL" in errors
    assert "of split 'train' of dataset 'digits'" in errors
    assert "Traceback" not in errors
    assert load_run(tmp_path / "run").step >= 3
