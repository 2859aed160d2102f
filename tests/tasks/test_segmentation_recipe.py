"""The schedule and the weight decay of mmsegmentation's recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.train.optimizer import DECAY_MASKS, warmup_linear
from mambaout_jax.weights.key_map import to_torch_key
from tests.models import dense_golden


def expected_rate(step, peak=1e-4, warmup=1500, num_steps=160_000):
    """Return the learning rate of mmsegmentation's schedule in float64."""
    if step < warmup:
        return peak * (1e-6 + (1 - 1e-6) * step / (warmup - 1))
    return peak * (1 - (step - warmup) / (num_steps - warmup - 1))


def test_the_learning_rate_of_every_step_is_that_of_the_formula():
    schedule = warmup_linear(learning_rate=1e-4, warmup_learning_rate=1e-10, warmup_steps=1500, num_steps=160_000)
    rates = np.asarray(schedule(jnp.arange(160_000)), np.float64)
    expected = np.array([expected_rate(step) for step in range(160_000)])
    np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-12)
    assert rates[1499] == pytest.approx(1e-4, rel=1e-6)
    assert rates[1500] == pytest.approx(1e-4, rel=1e-6)
    assert rates[-1] == 0


def test_the_learning_rate_is_that_of_the_reference():
    case = dense_golden.load("lr_schedule__ade_160k")
    schedule = warmup_linear(learning_rate=1e-4, warmup_learning_rate=1e-10, warmup_steps=1500, num_steps=160_000)
    case.assert_close("outputs/lr", np.asarray(schedule(jnp.asarray(case.inputs["iterations"], jnp.int32)), np.float64))


def test_the_parameters_with_weight_decay_are_those_of_the_reference():
    case = dense_golden.load("decay_groups__upernet")
    model = mo.create_model(
        "upernet", backbone="mambaout_femto", dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=3, channels=12,
        auxiliary_channels=16,
    )  # fmt: skip
    mask = DECAY_MASKS["all_but_norms"](model.no_decay)(model.shapes["params"])
    key_format = next(found for found in model.family.key_formats if found.name == "mmseg-mambaout")
    ours = {
        to_torch_key(key_format, jax.tree_util.keystr(path, simple=True, separator=".")): decayed
        for path, decayed in jax.tree.leaves_with_path(mask)
    }
    expected = dict(zip(case.record["parameters"], case.outputs["weight_decay"] > 0, strict=True))
    assert ours == expected
