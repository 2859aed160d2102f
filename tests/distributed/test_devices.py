"""Eight devices, however weights are split over them, train as one does."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from mambaout_jax import distributed
from mambaout_jax.run.state import init_step_metrics
from mambaout_jax.run.workdir import build_model
from mambaout_jax.tasks.classification.mixing import Augmentation, augment
from mambaout_jax.train.program import training_program
from tests.train import tiny

ROOT = Path(__file__).parents[2]
STEPS = 20
CHANGES = {
    "batch_size": 64,
    "eval_batch_size": 64,
    "num_epochs": 4,
    "optim.warmup_epochs": 0,
    "model.depths": (1, 2),
    "model.dims": (32, 64),
    "augment.mixup_alpha": 0.8,
    "augment.cutmix_alpha": 1.0,
    "augment.mixup_prob": 1.0,
    "augment.mixup_group": 8,
}
ERASING = {"augment.random_erasing_prob": 0.25, "augment.rotate_degrees": 5.0}
COLLECTIVE = re.compile(r"(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def train_steps(mesh, **changes):
    """Take steps on random batches; give losses, what the first and the last left behind, and the program's text."""
    config = tiny.config(**CHANGES, **changes)
    program = training_program(config, build_model(config, 10), 1437, mesh)
    replicated, placed = distributed.replicated(mesh), distributed.shardings(program.state)
    rng = np.random.default_rng(0)
    losses, params = [], []
    with jax.set_mesh(mesh):
        step = program.lower().compile()
        draw = jax.jit(lambda: program.draw_state(jax.random.key(0)), out_shardings=placed)
        state, progress, key = draw(), jax.jit(init_step_metrics, out_shardings=replicated)(), jax.random.key(1)
        key = jax.device_put(key, replicated)
        for number in range(STEPS):
            images = rng.integers(0, 256, (64, 32, 32, 1), np.uint8)
            batch = {"image": images, "label": rng.integers(0, 10, 64, np.int32)}
            before = float(progress.loss_sum)
            state, progress = step(state, progress, jax.device_put(batch, distributed.batch_sharding(mesh)), key)
            losses.append(float(progress.loss_sum) - before)
            if number in (0, STEPS - 1):
                params.append(jax.device_get((state.opt_state, state.variables["params"])))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    return {"losses": losses, "after": params, "text": step.as_text(), "held": held}


def augmentation_text(mesh):
    """Compile what is done to a batch before the model sees it."""
    augmentation, sharding = Augmentation(**tiny.config(**CHANGES, **ERASING).augment), distributed.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), np.uint8, sharding=sharding)
    labels = jax.ShapeDtypeStruct((64,), np.int32, sharding=sharding)
    apply = partial(augment, settings=augmentation, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    with jax.set_mesh(mesh):
        return jax.jit(apply).lower(images, labels, jax.random.key(0)).compile().as_text()


def largest_difference(ours, theirs):
    """Measure each leaf by its own largest value."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-30), ours, theirs)
    return float(max(jax.tree.leaves(differences)))


def compare() -> None:
    """Print how the meshes of eight devices differ from one device."""
    one = train_steps(distributed.make_mesh(devices=jax.devices()[:1]))
    found = {}
    for fsdp, scan_blocks in ((1, False), (4, False), (8, False), (8, True)):
        many = train_steps(distributed.make_mesh(fsdp), **{"model.scan_blocks": scan_blocks})
        found[f"{fsdp} scanned" if scan_blocks else f"{fsdp}"] = {
            "loss": float(np.abs(np.subtract(many["losses"], one["losses"])).max()),
            "first": largest_difference(many["after"][0][0], one["after"][0][0]),
            "last": largest_difference(many["after"][1][1], one["after"][1][1]),
            "held": many["held"] / one["held"],
            "all_to_all": "all-to-all" in many["text"],
        }
    found["augmentation"] = COLLECTIVE.findall(augmentation_text(distributed.make_mesh()))
    print(json.dumps(found))


@pytest.mark.slow
def test_eight_devices_train_as_one_however_weights_are_split_and_blocks_run():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    program = "from tests.distributed.test_devices import compare; compare()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert differences.pop("augmentation") == []
    for fsdp, found in differences.items():
        # After one step the optimizer's moments are the gradient and its square, scaled.
        assert found["first"] < 1e-5, (fsdp, found)
        assert found["loss"] < 1e-5, (fsdp, found)
        assert found["last"] < 1e-3, (fsdp, found)
        assert not found["all_to_all"], fsdp
        assert fsdp == "1" or found["held"] < 0.6, (fsdp, found)
