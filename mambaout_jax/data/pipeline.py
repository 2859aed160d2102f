"""Batches for training and evaluation, read ahead by Grain.

The global batch at step k is a function of (seed, k) alone, row for row, whatever the number of hosts and of
workers and wherever the run started. No iterator state exists: a run resumes at `start_step`.
"""

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.sources import ImageSource
from mambaout_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]

# More threads or a longer queue compete with the training step for the cores and made small steps slower.
READ_THREADS = 2
READ_AHEAD_BATCHES = 16
READ_AHEAD_BYTES = 2**28
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
    bad_records: str = "stop",
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
        bad_records: "stop" raises for a record that does not decode; "skip" takes the next one that does.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, bad_records)
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
    rows = grain.MapDataset.range(sys.maxsize).seed(seed)
    samples = rows.random_map(_TrainSample(source, transform, seed, used, bad_records == "skip"))
    # Batched before hosts take their share: the other way round gives the same set in another order, and with it
    # other partners in mixup.
    batches = samples.batch(batch_size // host_count, drop_remainder=True)[host_index::host_count][start_step:]
    return _read_ahead(batches, transform, batch_size // host_count, num_workers)


def eval_batches(
    source: ImageSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    bad_records: str = "stop",
) -> Iterator[Batch]:
    """Yield this host's share of a pass over the split, in the split's order, every image once.

    All hosts get the same number of batches of the same size. Rows that fill up the last ones have "mask" False,
    and so has, under bad_records="skip", a row whose record does not decode; that one counts in "skipped".

    Args:
        batch_size: images in a global batch, over all hosts.
        num_workers: processes that decode; 0 decodes in threads of this one.
        host_index: this host's rank in mesh order.

    Raises:
        DataError: an argument does not fit, or, while iterating, a record does not decode.
    """
    _check_arguments(batch_size, num_workers, host_index, host_count, bad_records)
    num_rows = -(-len(source) // batch_size) * batch_size
    samples = grain.MapDataset.range(num_rows).map(_EvalSample(source, transform, bad_records == "skip"))
    batches = samples.batch(batch_size // host_count, drop_remainder=True)[host_index::host_count]
    return _read_ahead(batches, transform, batch_size // host_count, num_workers)


class _TrainSample(grain.transforms.RandomMap):
    """Read, decode and augment the record that a row of the run stands for.

    Row r is the record at place r % used in epoch r // used. A permutation an epoch, four bytes a record, is drawn
    here because Grain's index shuffle costs as much as decoding does on small datasets.
    """

    def __init__(self, source: ImageSource, transform: TrainTransform, seed: int, used: int, skip: bool):
        self._source = source
        self._transform = transform
        self._seed = seed
        self._used = used
        self._attempts = min(MAX_BAD_IN_A_ROW, len(source)) if skip else 1

    def random_map(self, row: int, rng: np.random.Generator) -> Batch:
        epoch, place = divmod(row, self._used)
        first = int(_permutation(len(self._source), self._seed, epoch)[place])
        for skipped in range(self._attempts):
            index = (first + skipped) % len(self._source)
            try:
                record = self._source[index]
                image = self._transform(record["image"], rng)
            except DataError as error:
                failure = error
                continue
            return {"image": image, "label": np.int32(record["label"]), "skipped": np.int32(skipped)}
        if self._attempts > 1:
            failure = DataError(f"{failure}, nor do the {self._attempts - 1} before it")
        raise _bad_record(self._source, index, failure)


@functools.lru_cache(maxsize=2)  # reading ahead crosses from one epoch into the next
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length).astype(np.int32)


class _EvalSample(grain.transforms.Map):
    """Read, decode and resize the record at an index, or fill a row past the last one."""

    def __init__(self, source: ImageSource, transform: EvalTransform, skip: bool):
        self._source = source
        self._transform = transform
        self._skip = skip

    def map(self, index: int) -> Batch:
        if index >= len(self._source):
            return self._empty(skipped=0)
        try:
            record = self._source[index]
            image = self._transform(record["image"])
        except DataError as error:
            if self._skip:
                return self._empty(skipped=1)
            raise _bad_record(self._source, index, error) from error
        label = np.int32(record["label"])
        return {"image": image, "label": label, "mask": np.bool_(True), "skipped": np.int32(0)}

    def _empty(self, skipped: int) -> Batch:
        image = np.zeros((*self._transform.size, self._transform.channels), np.uint8)
        return {"image": image, "label": np.int32(0), "mask": np.bool_(False), "skipped": np.int32(skipped)}


def _bad_record(source: ImageSource, index: int, error: DataError) -> DataError:
    return DataError(
        f"record {index} of split {source.split!r} of dataset {source.name!r}: {error}; prepare the dataset again, "
        "or let bad_records='skip' pass over such records and count them"
    )


def _read_ahead(batches: grain.MapDataset, transform, rows: int, num_workers: int) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, which are parsed only where absl runs the program
        flags.FLAGS.mark_as_parsed()
    batch_bytes = rows * transform.size[0] * transform.size[1] * transform.channels
    buffer_size = max(2, min(READ_AHEAD_BATCHES, READ_AHEAD_BYTES // batch_bytes))
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=buffer_size))
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_WorkerStart(os.getpid()))
    return _iterate(dataset, copy=num_workers > 0)


def _iterate(dataset: grain.IterDataset, copy: bool) -> Iterator[Batch]:
    iterator = iter(dataset)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except DataError as error:
                raise DataError(str(error)) from None  # without the trace of a thread or a worker
            # A worker's batch lies in shared memory, which is unmapped when Grain's array goes.
            yield {key: np.array(value) for key, value in batch.items()} if copy else batch
    finally:
        iterator.close()


class _WorkerStart:
    """Prepare a worker process: Ctrl-C is its parent's to handle, and it ends when its parent is killed."""

    def __init__(self, parent: int):
        self._parent = parent

    def __call__(self, worker_index: int, worker_count: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1)
        os._exit(0)


def _check_arguments(batch_size: int, num_workers: int, host_index: int, host_count: int, bad_records: str) -> None:
    _check_at_least("batch_size", batch_size, 1)
    _check_at_least("num_workers", num_workers, 0)
    _check_at_least("host_count", host_count, 1)
    if not 0 <= host_index < host_count:
        raise DataError(f"host_index is {host_index}; expected 0 to {host_count - 1}")
    if batch_size % host_count:
        raise DataError(f"a batch of {batch_size} images does not divide among {host_count} hosts")
    if bad_records not in ("stop", "skip"):
        raise DataError(f"bad_records is {bad_records!r}; expected 'stop' or 'skip'")


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise DataError(f"{name} is {value!r}; expected an integer of at least {least}")
