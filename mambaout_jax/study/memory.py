"""The memory of a training step, as planned by the compiler."""

from typing import Any

import jax

from mambaout_jax import distributed
from mambaout_jax.data import open_source
from mambaout_jax.run.workdir import build_model
from mambaout_jax.train.program import training_program


def step_memory(config: Any) -> int:
    """Return the bytes on one device for the arguments and temporaries of a config's training step.

    This is the compiler's plan, which is the same for every run; the peak of a process would include its other work.

    Args:
        config: of a run, a ConfigDict.

    Raises:
        RunError, DataError, ModelError: the config or the dataset is invalid.
    """
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    mesh = distributed.make_mesh()
    program = training_program(config, build_model(config, len(source.class_names)), len(source), mesh)
    with jax.set_mesh(mesh):
        plan = program.lower().compile().memory_analysis()
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes
