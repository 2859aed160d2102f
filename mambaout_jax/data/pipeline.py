"""Batches for training and evaluation, read ahead by Grain.

The global batch at step k is a function of (seed, k) alone, row for row, for any number of hosts and workers and any
first step. The iterator has no state to save: a run resumes at `start_step`.

An example is one record after its transform: a nested dict of NumPy arrays, image and targets together. A batch is the
same dict of the stacked arrays of its rows.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from mambaout_jax.data.arguments import require
from mambaout_jax.data.errors import DataError
from mambaout_jax.data.sources import Source
from mambaout_jax.data.workers import THREADS, WorkerInit, WorkerStatus, is_worker_death, set_current_record

Example = dict[str, Any]
Batch = dict[str, Any]

# More threads (see workers.py) or a longer queue compete with the training step for the cores and made small steps
# slower.
READ_AHEAD_CHUNKS = 16
READ_AHEAD_BYTES = 2**28
# Workers make parts of a batch, so that all of them work on the next one and none keeps a whole one in memory.
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 16, 64
MAX_BAD_IN_A_ROW = 100


class TrainExampleTransform(Protocol):
    """A function from a record to a random example; it pickles, as it goes to the workers."""

    def __call__(self, record: Any, rng: np.random.Generator) -> Example:
        """Return an example; equal generators give equal ones. Raises DataError for a record that does not decode."""

    def empty(self) -> Example:
        """Return an example of the same structure, shapes and dtypes, made without a record."""


class EvalExampleTransform(Protocol):
    """A function from a record to its example; it pickles, as it goes to the workers."""

    def __call__(self, record: Any) -> Example:
        """Return the example. Raises DataError for a record that does not decode."""

    def empty(self) -> Example:
        """Return an example of the same structure, shapes and dtypes, made without a record: the filler row."""


def train_batches(
    source: Source,
    transform: TrainExampleTransform,
    *,
    batch_size: int,
    steps_per_epoch: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    on_bad_record: str = "raise",
) -> Iterator[Batch]:
    """Yield this host's share of every batch from `start_step` on, without end.

    An epoch is a new shuffle of the records of which the first steps_per_epoch * batch_size are used, each once.
    The global batch is the hosts' batches one after the other. Batches have the stacked arrays of `transform`, and
    "skipped" int32 (b,): how many records did not decode in this row's place.

    Args:
        batch_size: rows of a global batch, over all hosts.
        seed: from 0 to 2**32 - 1.
        num_workers: processes that decode; 0 decodes in threads of this one.
        host_index: this host's rank in mesh order.
        on_bad_record: "raise" raises for a record that does not decode; "skip" takes the next one that does.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    require.at_least("steps_per_epoch", steps_per_epoch, 1)
    require.at_least("start_step", start_step, 0)
    require.at_least("seed", seed, 0)
    if seed >= 2**32:
        raise DataError(f"seed is {seed}; expected less than 2**32")
    used = steps_per_epoch * batch_size
    if used > len(source):
        raise DataError(
            f"{steps_per_epoch} steps of {batch_size} images need {used} images and split {source.split!r} of "
            f"{source.name!r} has {len(source)}; use fewer steps per epoch or a smaller batch"
        )
    rows = _HostRows(start_step, batch_size // host_count, host_index, host_count)
    sample = _TrainSample(source, transform, seed, used, on_bad_record == "skip")
    return _read_ahead(rows, sample, sys.maxsize // batch_size, batch_size // host_count, num_workers)


def eval_batches(
    source: Source,
    transform: EvalExampleTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    on_bad_record: str = "raise",
) -> Iterator[Batch]:
    """Yield this host's share of a pass over the split, in the split's order, every record once.

    All hosts get the same number of batches of the same size. Batches have the stacked arrays of `transform`, and

    * "mask" bool (b,): False for the filler rows of the last batches and, under on_bad_record="skip", for records that
      do not decode; these rows are `transform.empty()`,
    * "index" int32 (b,): which record of the split a row is, -1 for a filler row,
    * "skipped" int32 (b,): 1 for a record that does not decode.

    Args:
        batch_size: rows of a global batch, over all hosts.
        num_workers: processes that decode; 0 decodes in threads of this one.
        host_index: this host's rank in mesh order.
        on_bad_record: "raise" raises for a record that does not decode; "skip" masks its row.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    rows = _HostRows(0, batch_size // host_count, host_index, host_count)
    sample = _EvalSample(source, transform, on_bad_record == "skip")
    return _read_ahead(rows, sample, -(-len(source) // batch_size), batch_size // host_count, num_workers)


class _HostRows:
    """A function from a position in one host's share to the row of the run, over all hosts.

    Hosts take contiguous parts of each batch, not each nth row: the global batch is the same for any number of hosts.
    """

    def __init__(self, first_batch: int, rows: int, host_index: int, host_count: int):
        self._first_batch, self._rows = first_batch, rows
        self._host_index, self._host_count = host_index, host_count

    def __call__(self, position: int) -> int:
        batch, row = divmod(position, self._rows)
        return ((self._first_batch + batch) * self._host_count + self._host_index) * self._rows + row


class _TrainSample:
    """A function from a row of the run to its example.

    Row r is the record at position r % used in epoch r // used. A permutation an epoch, four bytes a record, is drawn
    here because Grain's index shuffle costs as much as decoding does on small datasets.
    """

    def __init__(self, source: Source, transform: TrainExampleTransform, seed: int, used: int, skip: bool):
        self.source = source
        self.transform = transform
        self._seed = seed
        self._used = used
        self._attempts = min(MAX_BAD_IN_A_ROW, len(source)) if skip else 1

    def __call__(self, row: int) -> Example:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, row]))
        epoch, position = divmod(row, self._used)
        first = int(_permutation(len(self.source), self._seed, epoch)[position])
        for skipped in range(self._attempts):
            index = (first + skipped) % len(self.source)
            set_current_record(index)
            try:
                example = self.transform(self.source[index], rng)
            except DataError as error:
                failure = error
                continue
            return {**example, "skipped": np.int32(skipped)}
        if self._attempts > 1:
            failure = DataError(f"{failure}, nor do the {self._attempts - 1} before it")
        raise _bad_record(self.source, index, failure)


@functools.lru_cache(maxsize=2)  # reading ahead crosses from one epoch into the next
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length).astype(np.int32)


class _EvalSample:
    """A function from an index to the example of that record, or to a filler row past the last one."""

    def __init__(self, source: Source, transform: EvalExampleTransform, skip: bool):
        self.source = source
        self.transform = transform
        self._skip = skip

    def __call__(self, index: int) -> Example:
        if index >= len(self.source):
            return self._row(None, index=-1, skipped=0)
        set_current_record(index)
        try:
            return self._row(self.transform(self.source[index]), index=index, skipped=0)
        except DataError as error:
            if self._skip:
                return self._row(None, index=index, skipped=1)
            raise _bad_record(self.source, index, error) from error

    def _row(self, example: Example | None, index: int, skipped: int) -> Example:
        return {
            **(self.transform.empty() if example is None else example),  # without the keys below, which are reserved
            "mask": np.bool_(example is not None),
            "index": np.int32(index),
            "skipped": np.int32(skipped),
        }


def _bad_record(source: Source, index: int, error: DataError) -> DataError:
    return DataError(
        f"record {index} of split {source.split!r} of dataset {source.name!r}: {error}; prepare the dataset again, "
        "or skip and count such records with on_bad_record='skip'"
    )


def _map_arrays(function: Callable[[list[Any]], np.ndarray], trees: list[Any]) -> Any:
    """Apply `function` to the list of arrays at each place of equal nested dicts.

    `jax.tree.map` does the same; nothing in data/ depends on JAX.
    """
    if isinstance(trees[0], dict):
        return {key: _map_arrays(function, [tree[key] for tree in trees]) for key in trees[0]}
    return function(trees)


def count_bytes(tree: Any) -> int:
    """Count the bytes of the arrays in a nested dict."""
    return sum(map(count_bytes, tree.values())) if isinstance(tree, dict) else tree.nbytes


class _Chunk:
    """A function from a number to the rows of one part of a batch, in one call: Grain has a price for each call."""

    def __init__(self, rows: _HostRows, sample: _TrainSample | _EvalSample, size: int):
        self._rows, self._sample, self._size = rows, sample, size

    def __call__(self, number: int) -> Batch:
        positions = range(number * self._size, (number + 1) * self._size)
        return _map_arrays(np.stack, [self._sample(self._rows(position)) for position in positions])


def _read_ahead(
    rows: _HostRows, sample: _TrainSample | _EvalSample, num_batches: int, batch_rows: int, num_workers: int
) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, which are parsed only where absl runs the program
        flags.FLAGS.mark_as_parsed()
    chunk = _chunk_rows(batch_rows)
    per_batch = batch_rows // chunk
    chunk_bytes = chunk * count_bytes(sample.transform.empty())
    buffer_size = max(2, min(READ_AHEAD_CHUNKS, READ_AHEAD_BYTES // chunk_bytes))
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=buffer_size)
    chunks = grain.MapDataset.range(num_batches * per_batch).map(_Chunk(rows, sample, chunk)).to_iter_dataset(options)
    if not num_workers:
        return _iterate(chunks, per_batch)
    return _iterate_workers(chunks, per_batch, sample.source, num_workers)


def _chunk_rows(rows: int) -> int:
    chunk = max(size for size in range(1, min(rows, MAX_CHUNK_ROWS) + 1) if rows % size == 0)
    return chunk if chunk >= MIN_CHUNK_ROWS else rows  # a prime number of rows, say


def _iterate_workers(chunks: grain.IterDataset, per_batch: int, source: Source, num_workers: int) -> Iterator[Batch]:
    status = WorkerStatus(num_workers)
    try:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        yield from _iterate(chunks.mp_prefetch(options, worker_init_fn=WorkerInit(status)), per_batch)
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        raise status.explain(error, f"split {source.split!r} of dataset {source.name!r}") from None
    finally:
        status.close()


def _iterate(dataset: grain.IterDataset, per_batch: int) -> Iterator[Batch]:
    """Join chunks to batches, by a copy even of a single one: a worker's chunk is in shared memory that is freed."""
    iterator = iter(dataset)
    try:
        while parts := list(itertools.islice(iterator, per_batch)):
            yield _map_arrays(np.concatenate, parts)
    except DataError as error:
        raise DataError(str(error)) from None  # without the trace of a thread or a worker
    finally:
        iterator.close()


def _check_arguments(batch_size: int, num_workers: int, host_index: int, host_count: int, on_bad_record: str) -> None:
    require.at_least("batch_size", batch_size, 1)
    require.at_least("num_workers", num_workers, 0)
    require.at_least("host_count", host_count, 1)
    if not 0 <= host_index < host_count:
        raise DataError(f"host_index is {host_index}; expected 0 to {host_count - 1}")
    if batch_size % host_count:
        raise DataError(f"a batch of {batch_size} images cannot be split equally among {host_count} hosts")
    require.choice("on_bad_record", on_bad_record, ("raise", "skip"))
