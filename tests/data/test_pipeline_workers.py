"""Batches do not depend on the number of workers and chunks; test_pipeline.py covers two workers."""

import contextlib
import functools
import itertools
import multiprocessing

import numpy as np
import pytest

from mambaout_jax.data import EvalTransform, TrainTransform, eval_batches, pipeline, train_batches
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.tasks.classification.transforms import EvalExample, TrainExample
from tests.data.photos import NumberedSource

VIEW = TrainExample(TrainTransform((12, 16), crop="random_resized", flip=0.5, interpolation="random"))
NUMBERED = TrainExample(TrainTransform((4, 5), channels=1))
EVAL = EvalExample(EvalTransform((4, 5), channels=1), max_labels=1)
MANY_ROWS = 160  # four chunks of 40


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def take(batches, count):
    with contextlib.closing(batches):
        taken = list(itertools.islice(batches, count))
    assert not multiprocessing.active_children()
    return taken


@functools.cache
def views(data_dir, num_workers):
    source = open_source("photos/whole", "train", data_dir)
    return take(train_batches(source, VIEW, batch_size=4, steps_per_epoch=5, seed=3, num_workers=num_workers), 11)


@pytest.mark.run
@pytest.mark.parametrize("num_workers", [1, 3])
def test_training_batches_equal_those_without_workers(data_dir, num_workers):
    assert_equal(views(data_dir, num_workers), views(data_dir, 0))


def many(num_workers):
    source = NumberedSource(2 * MANY_ROWS + 7)
    options = {"batch_size": MANY_ROWS, "steps_per_epoch": 2, "seed": 0, "num_workers": num_workers}
    return take(train_batches(source, NUMBERED, **options, start_step=1), 4)


@pytest.mark.run
def test_batches_of_chunks_that_workers_do_not_divide_equal_those_without_workers():
    assert MANY_ROWS > pipeline.MAX_CHUNK_ROWS
    batches = many(num_workers=3)
    assert [len(batch["label"]) for batch in batches] == [MANY_ROWS] * 4
    assert_equal(batches, many(num_workers=0))


@pytest.mark.run
def test_incomplete_evaluation_batches_equal_those_without_workers():
    source = NumberedSource(17)
    batches = take(eval_batches(source, EVAL, batch_size=2, num_workers=2), None)
    assert np.concatenate([batch["label"][batch["mask"]] for batch in batches])[:, 0].tolist() == list(range(17))
    assert_equal(batches, take(eval_batches(source, EVAL, batch_size=2), None))
