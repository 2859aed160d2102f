"""The training batches that a config describes."""

from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from mambaout_jax.data import TrainTransform, train_batches
from mambaout_jax.data.prepare import ensure_prepared
from mambaout_jax.models import Model
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import build_model
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from mambaout_jax.tasks.classification.transforms import TrainExample


def open_batches(config: ConfigDict) -> Iterator[dict[str, np.ndarray]]:
    """Open the training split of a config and yield its batches from the first on, without end.

    Raises:
        RunError, DataError, ModelError: the config, the dataset or the model does not fit.
    """
    ensure_prepared(config.data.name, config.data.data_dir)
    source = open_source(config.data.name, config.data.train_split, config.data.data_dir)
    return training_batches(config, build_model(config, len(source.class_names)), source)


def training_batches(
    config: ConfigDict, model: Model, source: ImageSource, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of a run from `start_step` on, without end.

    Raises:
        RunError, DataError: the config does not fit.
    """
    source.check_trainable()
    image_transform = TrainTransform(
        size=model.input_spec.size,
        channels=model.in_chans,
        crop=config.data.crop,
        scale=config.data.crop_scale,
        ratio=config.data.crop_ratio,
        flip=config.data.hflip_prob,
        interpolation=config.data.interpolation,
        auto_augment=config.data.auto_augment,
        pipeline=config.data.pipeline,
    )
    return train_batches(
        source,
        TrainExample(image_transform),
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch(config, len(source)),
        seed=config.seed,
        start_step=start_step,
        num_workers=config.data.num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        on_bad_record=config.data.on_bad_record,
    )


def steps_per_epoch(config: ConfigDict, num_images: int) -> int:
    """Count the whole batches of an epoch.

    Raises:
        RunError: there is none.
    """
    if config.batch_size > num_images:
        raise RunError(
            f"config.batch_size is {config.batch_size}; at most the {num_images} training images are expected"
        )
    return num_images // config.batch_size
