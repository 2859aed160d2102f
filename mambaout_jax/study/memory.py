"""What a training step needs of a device's memory, by the compiler."""

from typing import Any

import jax

from mambaout_jax import distributed
from mambaout_jax.run.workdir import build_model
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.train.program import training_program


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
    mesh = distributed.make_mesh()
    program = training_program(config, build_model(config, len(source.class_names)), len(source), mesh)
    with jax.set_mesh(mesh):
        plan = program.lower().compile().memory_analysis()
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes
