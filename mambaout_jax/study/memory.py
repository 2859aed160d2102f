"""The memory of a training step, from the compiler."""

import jax

from mambaout_jax import distributed
from mambaout_jax.run.config import RunConfig
from mambaout_jax.train.program import training_program


def step_memory(config: RunConfig) -> int:
    """Return the bytes on one device for the arguments and temporaries of a config's training step.

    This is what the compiler allocates, the same for every run; the peak of a process would include its other work.

    Raises:
        RunError, TaskError, DataError, ModelError: the config or the dataset is invalid.
    """
    task = config.build_task()
    source = task.open_source(config.data.train_split)
    model, mesh = task.build_model(source.labels), distributed.make_mesh()
    example = task.train_transform(model, source).empty()
    program = training_program(config, task, model, example, len(source), mesh)
    with jax.set_mesh(mesh):
        memory = program.lower().compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes
