"""Batches for training and evaluation, read ahead by Grain.

The global batch at step k is a function of (seed, k) alone, row for row, whatever the number of hosts and of
workers and wherever the run started. No iterator state exists: a run resumes at `start_step`.
"""

import functools
import itertools
import sys
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.eval_transform import EvalTransform
from mambaout_jax.data.sources import ImageSource
from mambaout_jax.data.train_transform import TrainTransform
from mambaout_jax.data.workers import THREADS, Board, WorkerStart, died, note

Batch = dict[str, np.ndarray]

# More threads (see workers.py) or a longer queue compete with the training step for the cores and made small steps
# slower.
READ_AHEAD_CHUNKS = 16
READ_AHEAD_BYTES = 2**28
# Workers make parts of a batch, so that all of them work on the one that is waited for and none holds a whole one.
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 16, 64
MAX_BAD_IN_A_ROW = 100


def train_batches(
    source: ImageSource,
    transform: TrainTransform,
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
    The global batch is the hosts' batches one after the other. Batches hold "image" uint8 (b, h, w, c), "label"
    int32 (b,) and "skipped" int32 (b,): how many records did not decode in this row's place.

    Args:
        batch_size: images in a global batch, over all hosts.
        seed: from 0 to 2**32 - 1.
        num_workers: processes that decode; 0 decodes in threads of this one.
        host_index: this host's rank in mesh order.
        on_bad_record: "raise" raises for a record that does not decode; "skip" takes the next one that does.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    _check_at_least("steps_per_epoch", steps_per_epoch, 1)
    _check_at_least("start_step", start_step, 0)
    _check_at_least("seed", seed, 0)
    if seed >= 2**32:
        raise DataError(f"seed is {seed}; expected less than 2**32")
    used = steps_per_epoch * batch_size
    if used > len(source):
        raise DataError(
            f"{steps_per_epoch} steps of {batch_size} images need {used} images and split {source.split!r} of "
            f"{source.name!r} has {len(source)}; use fewer steps per epoch or a smaller batch"
        )
    if source.max_labels != 1:
        raise DataError(f"images of {source.name!r} have several labels each; such a dataset is for evaluation only")
    rows = _HostRows(start_step, batch_size // host_count, host_index, host_count)
    sample = _TrainSample(source, transform, seed, used, on_bad_record == "skip")
    return _read_ahead(rows, sample, sys.maxsize // batch_size, batch_size // host_count, num_workers)


def eval_batches(
    source: ImageSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    on_bad_record: str = "raise",
) -> Iterator[Batch]:
    """Yield this host's share of a pass over the split, in the split's order, every image once.

    All hosts get the same number of batches of the same size. Batches hold "image" uint8 (b, h, w, c), "label" int32
    (b, source.max_labels) filled up with -1, "mask" bool (b,) and "skipped" int32 (b,). "mask" is False for rows that
    fill up the last batches, for images without a label and, under on_bad_record="skip", for records that do not
    decode; these count in "skipped".

    Args:
        batch_size: images in a global batch, over all hosts.
        num_workers: processes that decode; 0 decodes in threads of this one.
        host_index: this host's rank in mesh order.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, on_bad_record)
    rows = _HostRows(0, batch_size // host_count, host_index, host_count)
    sample = _EvalSample(source, transform, on_bad_record == "skip")
    return _read_ahead(rows, sample, -(-len(source) // batch_size), batch_size // host_count, num_workers)


class _HostRows:
    """Give the row of the run, over all hosts, that stands at a place in one host's share.

    Hosts take their parts of each batch, not each nth row: the global batch stays the same whatever their number.
    """

    def __init__(self, first_batch: int, rows: int, host_index: int, host_count: int):
        self._first_batch, self._rows = first_batch, rows
        self._host_index, self._host_count = host_index, host_count

    def __call__(self, place: int) -> int:
        batch, row = divmod(place, self._rows)
        return ((self._first_batch + batch) * self._host_count + self._host_index) * self._rows + row


class _TrainSample:
    """Read, decode and augment the record that a row of the run stands for.

    Row r is the record at place r % used in epoch r // used. A permutation an epoch, four bytes a record, is drawn
    here because Grain's index shuffle costs as much as decoding does on small datasets.
    """

    def __init__(self, source: ImageSource, transform: TrainTransform, seed: int, used: int, skip: bool):
        self.source = source
        self.transform = transform
        self._seed = seed
        self._used = used
        self._attempts = min(MAX_BAD_IN_A_ROW, len(source)) if skip else 1

    def __call__(self, row: int) -> Batch:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, row]))
        epoch, place = divmod(row, self._used)
        first = int(_permutation(len(self.source), self._seed, epoch)[place])
        for skipped in range(self._attempts):
            index = (first + skipped) % len(self.source)
            note(index)
            try:
                record = self.source[index]
                image = self.transform(record["image"], rng)
            except DataError as error:
                failure = error
                continue
            return {"image": image, "label": np.int32(record["label"]), "skipped": np.int32(skipped)}
        if self._attempts > 1:
            failure = DataError(f"{failure}, nor do the {self._attempts - 1} before it")
        raise _bad_record(self.source, index, failure)


@functools.lru_cache(maxsize=2)  # reading ahead crosses from one epoch into the next
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length).astype(np.int32)


class _EvalSample:
    """Read, decode and resize the record at an index, or fill a row past the last one."""

    def __init__(self, source: ImageSource, transform: EvalTransform, skip: bool):
        self.source = source
        self.transform = transform
        self._skip = skip

    def __call__(self, index: int) -> Batch:
        if index >= len(self.source):
            return self._empty(skipped=0)
        note(index)
        try:
            record = self.source[index]
            image = self.transform(record["image"])
        except DataError as error:
            if self._skip:
                return self._empty(skipped=1)
            raise _bad_record(self.source, index, error) from error
        labels = np.full(self.source.max_labels, -1, np.int32)
        given = np.atleast_1d(record["label"])
        labels[: len(given)] = given
        return {"image": image, "label": labels, "mask": np.bool_(len(given)), "skipped": np.int32(0)}

    def _empty(self, skipped: int) -> Batch:
        image = np.zeros((*self.transform.size, self.transform.channels), np.uint8)
        labels = np.full(self.source.max_labels, -1, np.int32)
        return {"image": image, "label": labels, "mask": np.bool_(False), "skipped": np.int32(skipped)}


def _bad_record(source: ImageSource, index: int, error: DataError) -> DataError:
    return DataError(
        f"record {index} of split {source.split!r} of dataset {source.name!r}: {error}; prepare the dataset again, "
        "or let on_bad_record='skip' pass over such records and count them"
    )


class _Chunk:
    """Make the rows of one part of a batch, in one call: handing rows over one by one costs Grain's price for each."""

    def __init__(self, rows: _HostRows, sample: _TrainSample | _EvalSample, size: int):
        self._rows, self._sample, self._size = rows, sample, size

    def __call__(self, number: int) -> Batch:
        places = range(number * self._size, (number + 1) * self._size)
        samples = [self._sample(self._rows(place)) for place in places]
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def _read_ahead(
    rows: _HostRows, sample: _TrainSample | _EvalSample, num_batches: int, batch_rows: int, num_workers: int
) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, which are parsed only where absl runs the program
        flags.FLAGS.mark_as_parsed()
    chunk = _chunk_rows(batch_rows)
    per_batch = batch_rows // chunk
    chunk_bytes = chunk * sample.transform.size[0] * sample.transform.size[1] * sample.transform.channels
    buffer_size = max(2, min(READ_AHEAD_CHUNKS, READ_AHEAD_BYTES // chunk_bytes))
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=buffer_size)
    chunks = grain.MapDataset.range(num_batches * per_batch).map(_Chunk(rows, sample, chunk)).to_iter_dataset(options)
    if not num_workers:
        return _iterate(chunks, per_batch)
    return _iterate_workers(chunks, per_batch, sample.source, num_workers)


def _chunk_rows(rows: int) -> int:
    chunk = max(size for size in range(1, min(rows, MAX_CHUNK_ROWS) + 1) if rows % size == 0)
    return chunk if chunk >= MIN_CHUNK_ROWS else rows  # a prime number of rows, say


def _iterate_workers(
    chunks: grain.IterDataset, per_batch: int, source: ImageSource, num_workers: int
) -> Iterator[Batch]:
    board = Board(num_workers)
    try:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        yield from _iterate(chunks.mp_prefetch(options, worker_init_fn=WorkerStart(board)), per_batch)
    except RuntimeError as error:
        if not died(error):
            raise
        raise board.explain(error, f"split {source.split!r} of dataset {source.name!r}") from None
    finally:
        board.close()


def _iterate(dataset: grain.IterDataset, per_batch: int) -> Iterator[Batch]:
    """Join chunks to batches; a copy even of a single one, since a worker's lies in memory that goes with it."""
    iterator = iter(dataset)
    try:
        while parts := list(itertools.islice(iterator, per_batch)):
            yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    except DataError as error:
        raise DataError(str(error)) from None  # without the trace of a thread or a worker
    finally:
        iterator.close()


def _check_arguments(batch_size: int, num_workers: int, host_index: int, host_count: int, on_bad_record: str) -> None:
    _check_at_least("batch_size", batch_size, 1)
    _check_at_least("num_workers", num_workers, 0)
    _check_at_least("host_count", host_count, 1)
    if not 0 <= host_index < host_count:
        raise DataError(f"host_index is {host_index}; expected 0 to {host_count - 1}")
    if batch_size % host_count:
        raise DataError(f"a batch of {batch_size} images does not divide among {host_count} hosts")
    if on_bad_record not in ("raise", "skip"):
        raise DataError(f"on_bad_record is {on_bad_record!r}; expected 'raise' or 'skip'")


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise DataError(f"{name} is {value!r}; expected an integer of at least {least}")
