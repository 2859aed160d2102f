"""A Vision Transformer trains, resumes, is evaluated and predicts with the code of all models."""

import shutil

import pytest
from PIL import Image

from mambaout_jax.evaluate.evaluation import evaluate
from mambaout_jax.evaluate.predict import predict_files
from mambaout_jax.run.workdir import load_run
from mambaout_jax.train.loop import train
from tests.train import tiny
from tests.weights import pytorch

MODEL = {
    "name": "deit_tiny_patch16_224",
    "img_size": 32,
    "in_chans": 1,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "drop_path_rate": 0.1,
    "attention": "causal",
    "global_pool": "avg",
}


@pytest.mark.nightly
def test_a_run_resumes_evaluates_and_predicts(tmp_path):
    config = tiny.config(save_every_steps=tiny.STEPS_PER_EPOCH).with_model(MODEL)
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    results = train(config, unbroken)
    (scores,) = evaluate(None, unbroken)["sets"]
    assert scores["raw"] == pytest.approx(results["raw"], rel=1e-6)
    shutil.copytree(unbroken, resumed)
    (resumed / "results.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / str(2 * tiny.STEPS_PER_EPOCH))
    assert load_run(resumed, "raw").step == tiny.STEPS_PER_EPOCH
    train(config, resumed)
    run, again = load_run(unbroken, "raw"), load_run(resumed, "raw")
    pytorch.assert_equal_trees(again.variables, run.variables)
    assert (run.step, run.model.options["attention"]) == (again.step, "causal")
    Image.new("L", (32, 32), 255).save(tmp_path / "white.png")
    (answer,) = predict_files(run, [str(tmp_path / "white.png")])
    assert len(answer.prediction.to_json(3)) == 3
