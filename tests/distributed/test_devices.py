"""Eight devices train like one, for every sharding of the weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax import distributed
from mambaout_jax.train.program import training_program
from tests.marks import slow_but
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
MESA = {"loss.mesa": 1.0, "loss.mesa_start": 0.1}  # from step 8 on
TEACHER = {"loss.teacher": "runs/x", "loss.teacher_weight": 1.0}
TEACHER_OPTIONS = {"img_size": 32, "num_classes": 10, "depths": (1, 2), "dims": (32, 64)}
ERASING = {"augment.random_erasing_prob": 0.25, "augment.rotate_degrees": 5.0}
COLLECTIVE = re.compile(r"(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def task_and_model(config):
    task = config.build_task()
    return task, task.build_model({"num_classes": 10})


def train_steps(mesh, **changes):
    """Train on random batches; return losses, moments and weights after the first and last step, and the program."""
    config = tiny.config(**CHANGES, **changes)
    task, model = task_and_model(config)
    teacher = mo.create_model("mambaout_kobe", **TEACHER_OPTIONS) if task.teacher() else None
    program = training_program(config, task, model, task.train_transform(model).empty(), 1437, mesh, teacher)
    replicated, placed = distributed.replicated(mesh), distributed.shardings(program.state)
    rng = np.random.default_rng(0)
    losses, params = [], []
    with jax.set_mesh(mesh):
        step = program.lower().compile()
        state = jax.jit(program.init_state, out_shardings=placed)(jax.random.key(0))
        metrics = jax.jit(program.init_metrics, out_shardings=replicated)()
        key = jax.device_put(jax.random.key(1), replicated)
        split, variables = distributed.batch_sharding(mesh), None
        if teacher is not None:
            init = jax.jit(teacher.init, out_shardings=distributed.shardings(program.teacher))
            variables = init(jax.random.key(2))
        for number in range(STEPS):
            images = rng.integers(0, 256, (64, 32, 32, 1), np.uint8)
            batch = {"image": images, "label": rng.integers(0, 10, 64, np.int32)}
            before = float(metrics.loss)
            state, metrics = step(state, metrics, jax.device_put(batch, split), key, variables)
            losses.append(float(metrics.loss) - before)
            if number in (0, STEPS - 1):
                params.append(jax.device_get((state.opt_state, state.variables["params"])))
    device_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    return {"losses": losses, "after": params, "text": step.as_text(), "device_bytes": device_bytes}


def augmentation_text(mesh):
    """Compile the preparation of a batch on the devices."""
    config = tiny.config(**CHANGES, **ERASING)
    task, model = task_and_model(config)
    batch = distributed.batch_shapes(task.train_transform(model).empty(), config.batch_size, mesh)
    with jax.set_mesh(mesh):
        prepare = jax.jit(lambda batch, key: task.prepare_batch(model, batch, key))
        return prepare.lower(batch, jax.random.key(0)).compile().as_text()


def largest_difference(ours, theirs):
    """Compare each leaf relative to its largest value."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-30), ours, theirs)
    return float(max(jax.tree.leaves(differences)))


def compare(changes: dict[str, float]) -> None:
    """Print how the meshes of eight devices differ from one device."""
    one = train_steps(distributed.make_mesh(devices=jax.devices()[:1]), **changes)
    found = {}
    for fsdp, scan_blocks in ((1, False), (4, False), (8, False), (8, True)):
        many = train_steps(distributed.make_mesh(fsdp), **{"model.scan_blocks": scan_blocks, **changes})
        found[f"{fsdp} scanned" if scan_blocks else f"{fsdp}"] = {
            "loss": float(np.abs(np.subtract(many["losses"], one["losses"])).max()),
            "first": largest_difference(many["after"][0][0], one["after"][0][0]),
            "last": largest_difference(many["after"][1][1], one["after"][1][1]),
            "device_bytes": many["device_bytes"] / one["device_bytes"],
            "all_to_all": "all-to-all" in many["text"],
        }
    found["augmentation"] = COLLECTIVE.findall(augmentation_text(distributed.make_mesh()))
    print(json.dumps(found))


@pytest.mark.run
@pytest.mark.parametrize("changes", slow_but([{}], [{}, MESA, TEACHER], "nightly"), ids=["plain", "mesa", "teacher"])
def test_eight_devices_train_like_one_for_every_sharding_and_block_execution(changes):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    program = f"from tests.distributed.test_devices import compare; compare({changes})"
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
        assert fsdp == "1" or found["device_bytes"] < 0.6, (fsdp, found)
