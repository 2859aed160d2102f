"""What a training step needs of a device's memory, by the compiler."""

from typing import Any

import jax
import numpy as np

from mambaout_jax import parallel
from mambaout_jax.data import open_source
from mambaout_jax.models import Model
from mambaout_jax.train.batch import accumulation_steps
from mambaout_jax.train.inputs import steps_per_epoch
from mambaout_jax.train.loop import build_optimizer
from mambaout_jax.train.mixing import Augmentation
from mambaout_jax.train.state import init_progress, init_state
from mambaout_jax.train.step import make_train_step
from mambaout_jax.train.workdir import build_model


def step_memory(config: Any) -> int:
    """Count the bytes of one device that the training step of a config takes: its arguments and its temporaries.

    That is the compiler's own plan, the same for every run and every state of the process, where the peak of a process
    would hold what else it does.

    Args:
        config: of a run, a ConfigDict.

    Raises:
        RunError, DataError, ModelError: the config or the dataset does not fit.
    """
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    model = build_model(config, len(source.class_names))
    mesh = parallel.make_mesh()
    sharding, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    augmentation = Augmentation(**config.augment, round_mixed=config.data.pipeline == "exact")
    schedule, optimizer = build_optimizer(config, model, steps_per_epoch(config, source))
    group = augmentation.mixup_group if augmentation.mixes else 1
    train_step = make_train_step(
        model,
        optimizer,
        schedule,
        augmentation,
        accumulation_steps=accumulation_steps(config.batch_size, mesh.size, config.device_batch_size, group),
        ema_decay=config.optim.ema_decay,
    )
    with jax.set_mesh(mesh):
        state = parallel.abstract(
            lambda key: init_state(model, optimizer, key, ema=config.optim.ema_decay is not None),
            jax.random.key(0),
            sharding=replicated,
        )
        progress = parallel.abstract(init_progress, sharding=replicated)
        key = parallel.abstract(lambda: jax.random.key(0), sharding=replicated)
        step = jax.jit(train_step, donate_argnums=0, out_shardings=replicated)
        plan = step.lower(state, progress, _batch(config.batch_size, model, sharding), key).compile().memory_analysis()
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes


def _batch(batch_size: int, model: Model, sharding: jax.sharding.NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, *model.input_spec.size, model.in_chans)
    return {
        "image": jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(shape[:1], np.int32, sharding=sharding),
    }
