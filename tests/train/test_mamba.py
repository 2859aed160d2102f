"""A model with a state space model is trained, stopped, resumed, evaluated and exported as any other."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.export.torch import export_weights, import_weights
from mambaout_jax.run.errors import StoppedError
from mambaout_jax.run.workdir import load_run
from mambaout_jax.tasks.classification import task
from mambaout_jax.train.loop import train
from tests.train import tiny

CHANGES = {
    "model.name": "mamba_femto",
    "model.depths": (1,),
    "model.dims": (8,),
    "num_epochs": 3,
    "optim.warmup_epochs": 0,
    "optim.learning_rate": 3e-2,
    "log_every_steps": tiny.STEPS_PER_EPOCH,
}


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "train"]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.nightly
def test_a_run_learns_resumes_to_the_same_bits_and_goes_to_pytorch(tmp_path, monkeypatch):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    results = train(tiny.config(**CHANGES), unbroken)
    seen = losses(unbroken)
    assert np.isfinite(seen).all()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] - 0.01

    def interrupt(*arrays):
        os.kill(os.getpid(), signal.SIGTERM)
        return top_classes(*arrays)

    top_classes = task.top_classes
    with monkeypatch.context() as patch:
        patch.setattr(task, "top_classes", interrupt)
        with pytest.raises(StoppedError):
            train(tiny.config(**CHANGES), stopped)
    assert len(losses(stopped)) < len(seen)
    train(tiny.config(**CHANGES), stopped)
    one, other = load_run(unbroken, "raw"), load_run(stopped, "raw")
    assert one.step == other.step == 3 * tiny.STEPS_PER_EPOCH
    assert_same(one.variables, other.variables)

    (scores,) = evaluate(None, unbroken)["sets"]
    assert scores["raw"] == pytest.approx(results["raw"], rel=1e-6)

    said = []
    export_weights(unbroken, str(tmp_path / "folder"), weights="raw", log=said.append)
    import_weights(str(tmp_path / "folder"), tmp_path / "back")
    back = load_run(tmp_path / "back")
    assert_same(back.variables, one.variables)
    assert (back.model.name, back.model.options["token_mixer"]) == ("mamba_femto", "conv_ssm")
    assert any(sentence.startswith("weights read back: the logits are identical") for sentence in said)
