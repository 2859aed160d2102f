"""Batches for training and evaluation, read ahead by Grain.

The global batch at step k is a function of (seed, k) alone, row by row, for any number of hosts and workers and any
first step. The iterator has no state to save: a run resumes at `start_step`.

An example is a transformed record: a nested dict of NumPy arrays, image and targets together. A batch is the same dict
with the arrays of its rows stacked.
"""

import contextlib
import functools
import itertools
import math
import os
import shutil
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
from mambaout_jax.machine import SHARED_MEMORY, MachineError, describe_fault
from mambaout_jax.words import count

Example = dict[str, Any]
Batch = dict[str, Any]

# More threads (see workers.py) or a longer queue would compete with the training step for cores; both slowed down small
# steps.
READ_AHEAD_CHUNKS = 16
READ_AHEAD_BYTES = 2**28
# Workers produce chunks of a batch, so that all work on the next batch and none needs memory for a whole one.
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 16, 64
MAX_BAD_IN_A_ROW = 100


class TrainExampleTransform(Protocol):
    """A random transform of records to examples; picklable, for data workers."""

    def __call__(self, record: Any, rng: np.random.Generator) -> Example:
        """Return an example, equal for equal generators; raise DataError if the record cannot be decoded."""

    def empty(self) -> Example:
        """Return an example of the same structure, shapes and dtypes, without a record."""


class EvalExampleTransform(Protocol):
    """A transform of records to examples; picklable, for data workers."""

    def __call__(self, record: Any) -> Example:
        """Return the example; raise DataError if the record cannot be decoded."""

    def empty(self) -> Example:
        """Return an example of the same structure, shapes and dtypes, without a record: a padding row."""


def train_batches(
    source: Source,
    transform: TrainExampleTransform,
    *,
    batch_size: int,
    steps_per_epoch: int,
    seed: int,
    repeated_aug: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    on_bad_record: str = "raise",
) -> Iterator[Batch]:
    """Yield this host's share of every batch from `start_step` on, endlessly.

    Every epoch has a new permutation of the records, of which the first ceil(steps_per_epoch * batch_size /
    repeated_aug) are used, each in `repeated_aug` consecutive rows; the last one may have fewer. The global batch is
    the concatenation of the hosts' batches. Batches have the stacked arrays of `transform`, and "skipped" int32 (b,):
    the number of undecodable records that this row replaces.

    If the source has `groups`, every batch has records of one group, in a random order of batches. Incomplete batches
    at the end of a group are left out of an epoch; if it lacks batches then, the first ones are used again.

    Args:
        batch_size: rows of a global batch, over all hosts.
        seed: from 0 to 2**32 - 1.
        repeated_aug: rows per record, each with its own random numbers.
        num_workers: number of decoding processes; 0 decodes in threads of this process.
        host_index: this host's rank in mesh order.
        on_bad_record: "raise" raises for undecodable records; "skip" replaces them by the next decodable one.

    Raises:
        DataError: an argument is invalid, or, during iteration, a record cannot be decoded.
        MachineError: during iteration, records cannot be read, or a worker died; never skipped.

    Reference of repeated augmentation: Hoffer et al., Augment Your Batch, 2020.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    require.at_least("steps_per_epoch", steps_per_epoch, 1)
    require.at_least("repeated_aug", repeated_aug, 1)
    require.at_least("start_step", start_step, 0)
    require.at_least("seed", seed, 0)
    if seed >= 2**32:
        raise DataError(f"seed is {seed}; expected less than 2**32")
    epoch_rows = steps_per_epoch * batch_size
    used = math.ceil(epoch_rows / repeated_aug)
    if used > len(source):
        repeats = f" with repeated_aug={repeated_aug}" if repeated_aug > 1 else ""
        raise DataError(
            f"an epoch of {count(steps_per_epoch, 'step')} of {count(batch_size, 'image')}{repeats} requires "
            f"{count(used, 'image')}, but split {source.split!r} of {source.name!r} has {len(source)}; "
            "use fewer steps per epoch or a smaller batch"
        )
    order = functools.partial(_permutation, len(source), seed)
    if getattr(source, "groups", None) is not None:
        records, rest = divmod(batch_size, repeated_aug)
        if rest:
            raise DataError(
                f"config.data.repeated_aug is {repeated_aug}; expected a divisor of config.batch_size {batch_size}"
            )
        order = _GroupOrder(source, seed, records)
        order(0)  # raises an error for a batch that no group fills
    rows = _HostRows(start_step, batch_size // host_count, host_index, host_count)
    sample = _TrainSample(source, transform, seed, epoch_rows, repeated_aug, order, on_bad_record == "skip")
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
    """Yield this host's share of one pass over the split, in order, with every record once.

    All hosts get the same number of batches of the same size. Batches have the stacked arrays of `transform`, and

    * "mask" bool (b,): False for the padding rows of the last batches and, under on_bad_record="skip", for undecodable
      records; these rows are `transform.empty()`,
    * "index" int32 (b,): the index of the record in the split, -1 for padding rows,
    * "skipped" int32 (b,): 1 for undecodable records.

    Args:
        batch_size: rows of a global batch, over all hosts.
        num_workers: number of decoding processes; 0 decodes in threads of this process.
        host_index: this host's rank in mesh order.
        on_bad_record: "raise" raises for undecodable records; "skip" masks their rows.

    Raises:
        DataError: an argument is invalid, or, during iteration, a record cannot be decoded.
        MachineError: during iteration, records cannot be read, or a worker died; never skipped.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    rows = _HostRows(0, batch_size // host_count, host_index, host_count)
    sample = _EvalSample(source, transform, on_bad_record == "skip")
    return _read_ahead(rows, sample, -(-len(source) // batch_size), batch_size // host_count, num_workers)


class _HostRows:
    """A map from positions in one host's share to rows of the run, over all hosts.

    Hosts take contiguous parts of each batch, not every nth row, so that the global batch is the same for any number
    of hosts.
    """

    def __init__(self, first_batch: int, rows: int, host_index: int, host_count: int):
        self._first_batch, self._rows = first_batch, rows
        self._host_index, self._host_count = host_index, host_count

    def __call__(self, position: int) -> int:
        batch, row = divmod(position, self._rows)
        return ((self._first_batch + batch) * self._host_count + self._host_index) * self._rows + row


class _TrainSample:
    """A map from rows of the run to examples.

    Row r is the record at position r % epoch_rows // repeats of epoch r // epoch_rows.

    Args:
        order: function of the epoch that returns the records in their order.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainExampleTransform,
        seed: int,
        epoch_rows: int,
        repeats: int,
        order: Callable[[int], np.ndarray],
        skip: bool,
    ):
        self.source = source
        self.transform = transform
        self._seed = seed
        self._epoch_rows = epoch_rows
        self._repeats = repeats
        self._order = order
        self._attempts = min(MAX_BAD_IN_A_ROW, len(source)) if skip else 1

    def __call__(self, row: int) -> Example:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, row]))
        epoch, position = divmod(row, self._epoch_rows)
        order = self._order(epoch)
        first = int(order[position // self._repeats % len(order)])
        for skipped, index in enumerate(itertools.islice(_similar_records(self.source, first), self._attempts)):
            set_current_record(index)
            try:
                example = self.transform(self.source[index], rng)
            except DataError as error:
                failure = error
                continue
            return {**example, "skipped": np.int32(skipped)}
        if self._attempts > 1:
            failure = DataError(
                f"{failure}, and the {count(self._attempts - 1, 'record')} before it cannot be decoded either"
            )
        raise _bad_record(self.source, index, failure)


def _similar_records(source: Source, first: int) -> Iterator[int]:
    """Yield the indices of records of the same group, in the order of the source, from `first` on."""
    groups = getattr(source, "groups", None)
    for index in itertools.chain(range(first, len(source)), range(first)):
        if groups is None or groups[index] == groups[first]:
            yield index


class _GroupOrder:
    """The order of records in which every batch has one group.

    Args:
        records: number of records per batch.
    """

    def __init__(self, source: Source, seed: int, records: int):
        self._groups, self._seed, self._records = np.asarray(source.groups), seed, records
        self._name = f"split {source.split!r} of {source.name!r}"

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the records of all batches of an epoch.

        Raises:
            DataError: no group has enough records for a batch.
        """
        return _order_of(self, epoch)

    def draw(self, epoch: int) -> np.ndarray:
        order = _permutation(len(self._groups), self._seed, epoch)
        batches = []
        for group in np.unique(self._groups):
            members = order[self._groups[order] == group]
            batches += list(members[: len(members) // self._records * self._records].reshape(-1, self._records))
        if not batches:
            raise DataError(
                f"no group of images of {self._name} is as large as a batch, {self._records}; decrease "
                "config.batch_size"
            )
        shuffled = np.random.default_rng((self._seed, epoch, 1)).permutation(len(batches))
        return np.concatenate([batches[index] for index in shuffled])


@functools.lru_cache(maxsize=2)
def _order_of(order: _GroupOrder, epoch: int) -> np.ndarray:
    return order.draw(epoch)


@functools.lru_cache(maxsize=2)  # reading ahead crosses the end of an epoch
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the order of an epoch, with NumPy: Grain's shuffle costs as much as decoding on small datasets."""
    return np.random.default_rng((seed, epoch)).permutation(length).astype(np.int32)


class _EvalSample:
    """A map from record indices to examples, and to padding rows past the last record."""

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
            **(self.transform.empty() if example is None else example),  # does not have the reserved keys below
            "mask": np.bool_(example is not None),
            "index": np.int32(index),
            "skipped": np.int32(skipped),
        }


def _bad_record(source: Source, index: int, error: DataError) -> DataError:
    return DataError(
        f"record {index} of split {source.split!r} of dataset {source.name!r}: {error}; prepare the dataset again, "
        "or skip and count such records with --config.data.on_bad_record=skip"
    )


def _map_arrays(function: Callable[[list[Any]], np.ndarray], trees: list[Any]) -> Any:
    """Apply `function` to the list of arrays at each leaf of identical nested dicts.

    Replaces `jax.tree.map`, because data/ does not depend on JAX.
    """
    if isinstance(trees[0], dict):
        return {key: _map_arrays(function, [tree[key] for tree in trees]) for key in trees[0]}
    return function(trees)


def count_bytes(tree: Any) -> int:
    """Return the number of bytes of all arrays in a nested dict."""
    return sum(map(count_bytes, tree.values())) if isinstance(tree, dict) else tree.nbytes


class _Chunk:
    """A map from chunk numbers to the rows of that chunk, computed in one call because Grain has a cost per call."""

    def __init__(self, rows: _HostRows, sample: _TrainSample | _EvalSample, size: int):
        self._rows, self._sample, self._size = rows, sample, size

    def __call__(self, number: int) -> Batch:
        positions = range(number * self._size, (number + 1) * self._size)
        try:
            return _map_arrays(np.stack, [self._sample(self._rows(position)) for position in positions])
        except Exception as error:
            if fault := describe_fault(error):
                source = self._sample.source
                raise MachineError(f"reading split {source.split!r} of dataset {source.name!r}: {fault}") from error
            raise


def _read_ahead(
    rows: _HostRows, sample: _TrainSample | _EvalSample, num_batches: int, batch_rows: int, num_workers: int
) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only absl.app parses
        flags.FLAGS.mark_as_parsed()
    chunk = _chunk_rows(batch_rows)
    per_batch = batch_rows // chunk
    chunk_bytes = chunk * count_bytes(sample.transform.empty())
    buffer_size = max(2, min(READ_AHEAD_CHUNKS, READ_AHEAD_BYTES // chunk_bytes))
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=buffer_size)
    chunks = grain.MapDataset.range(num_batches * per_batch).map(_Chunk(rows, sample, chunk)).to_iter_dataset(options)
    if not num_workers:
        return _iterate(chunks, per_batch)
    if not _fits_shared_memory(chunk_bytes, per_batch, num_workers):
        through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        chunks = grain.experimental.WithOptionsIterDataset(chunks, through_pipes)
    return _iterate_workers(chunks, per_batch, sample.source, num_workers)


def _fits_shared_memory(chunk_bytes: int, per_batch: int, num_workers: int) -> bool:
    """Return whether the chunks that wait for their use fit into shared memory, of which Docker has only 64 MiB.

    Each worker has one chunk in its queue, and one on each side of it; this process collects a batch. Training and
    evaluation run at the same time.
    """
    needed = 2 * (per_batch + 3 * num_workers) * chunk_bytes
    return not os.path.isdir(SHARED_MEMORY) or needed < shutil.disk_usage(SHARED_MEMORY).free


def _chunk_rows(rows: int) -> int:
    chunk = max(size for size in range(1, min(rows, MAX_CHUNK_ROWS) + 1) if rows % size == 0)
    return chunk if chunk >= MIN_CHUNK_ROWS else rows  # for example, a prime number of rows


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
        _wait_for_deletions()
        status.close()


def _wait_for_deletions() -> None:
    """Wait until Grain's thread has deleted the shared memory of the last chunks, which would be reported as leaked."""
    # Grain has no public function for this; without the private one, the warning at exit is harmless.
    with contextlib.suppress(ImportError, AttributeError):
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        if pool := SharedMemoryArray._del_thread_pool:
            pool.apply(int)  # the only thread deletes in order


def _iterate(dataset: grain.IterDataset, per_batch: int) -> Iterator[Batch]:
    """Concatenate chunks to batches; single chunks are copied, too, because workers return temporary shared memory."""
    iterator = iter(dataset)
    try:
        while chunks := list(itertools.islice(iterator, per_batch)):
            batch = _map_arrays(np.concatenate, chunks)
            for chunk in chunks:
                _clear(chunk)
            yield batch
    except DataError as error:
        raise DataError(str(error)) from None  # without the traceback of a thread or worker
    except Exception as error:  # also raised by Grain, which starts processes and shares memory
        if fault := describe_fault(error):
            raise MachineError(fault) from None
        raise
    finally:
        iterator.close()


def _clear(tree: dict[str, Any]) -> None:
    """Release the shared memory of a chunk, of which Grain keeps the last ones in reference cycles."""
    for value in tree.values():
        if isinstance(value, dict):
            _clear(value)
    tree.clear()


def _check_arguments(batch_size: int, num_workers: int, host_index: int, host_count: int, on_bad_record: str) -> None:
    require.at_least("batch_size", batch_size, 1)
    require.at_least("num_workers", num_workers, 0)
    require.at_least("host_count", host_count, 1)
    if not 0 <= host_index < host_count:
        raise DataError(f"host_index is {host_index}; expected 0 to {host_count - 1}")
    if batch_size % host_count:
        raise DataError(
            f"a batch of {count(batch_size, 'image')} cannot be split equally among {count(host_count, 'host')}"
        )
    require.choice("on_bad_record", on_bad_record, ("raise", "skip"))
