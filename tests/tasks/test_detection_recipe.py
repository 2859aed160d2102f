"""The schedule and the weight decay of mmdetection's recipe."""

import jax
import jax.numpy as jnp
import numpy as np

import mambaout_jax as mo
from mambaout_jax.train.optimizer import DECAY_MASKS, warmup_multistep
from mambaout_jax.weights.key_map import to_torch_key
from tests.models import dense_golden


def test_the_learning_rate_is_that_of_the_reference():
    case = dense_golden.load("lr_schedule__coco_1x")
    schedule = warmup_multistep(
        learning_rate=1e-4, warmup_learning_rate=1e-7, warmup_steps=1000, steps_per_epoch=250, drop_epochs=(8, 11)
    )
    steps = jnp.asarray(case.inputs["iterations"], jnp.int32)
    case.assert_close("outputs/lr", np.asarray(schedule(steps), np.float64))


def test_the_parameters_with_weight_decay_are_those_of_the_reference():
    case = dense_golden.load("decay_groups__mask_rcnn")
    model = mo.create_model(
        "mask_rcnn", backbone="mambaout_femto", dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=5, channels=16,
        box_channels=32,
    )  # fmt: skip
    mask = DECAY_MASKS["all_but_norms"](model.no_decay)(model.shapes["params"])
    key_format = next(found for found in model.family.key_formats if found.name == "mmdet-mambaout")
    ours = {
        to_torch_key(key_format, jax.tree_util.keystr(path, simple=True, separator=".")): decayed
        for path, decayed in jax.tree.leaves_with_path(mask)
    }
    expected = dict(zip(case.record["parameters"], case.outputs["weight_decay"] > 0, strict=True))
    assert ours == expected
