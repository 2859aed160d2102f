"""Images for the comparison of two forms of a model."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mambaout_jax.data import DataError
from mambaout_jax.models import Model
from mambaout_jax.run.config import RunConfig
from mambaout_jax.run.dataset import open_split
from mambaout_jax.tasks.api import Task
from mambaout_jax.weights import random_images
from mambaout_jax.words import count

# The number of random and of real images: a check takes seconds, and one image is enough to detect a wrong layer.
NUM_IMAGES = 4


def check_images(config: RunConfig, model: Model, log: Callable[[str], None]) -> Float[np.ndarray, "b h w c"]:
    """Return normalized images: random ones, and real ones if the config's dataset is prepared."""
    images = random_images(model, NUM_IMAGES)
    if config.data.name is None:
        log(f"comparing outputs on {count(NUM_IMAGES, 'random image')}, because the dataset of the weights is unknown")
        return images
    task: Task = config.build_task()
    try:
        source = open_split(config, task, config.data.validation_split)
        indices = np.linspace(0, len(source) - 1, NUM_IMAGES).astype(int)
        real = task.model_images(model, source, indices.tolist())
    except DataError as error:
        log(f"comparing outputs on {count(NUM_IMAGES, 'random image')} and no real ones: {error}")
        return images
    log(f"comparing outputs on {count(NUM_IMAGES, 'random image')} and {NUM_IMAGES} of {source.name}")
    return np.concatenate([images, real])
