"""Records of ArrayRecord files by index, with a bounded number of open files."""

import bisect
import collections
import itertools
import resource
import threading
from collections.abc import Sequence
from typing import Any

from array_record.python import array_record_module
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.errors import DataError
from mambaout_jax.errors import reason
from mambaout_jax.machine import MachineError, describe_fault

# By default, a reader allocates 16 MiB and reads ahead, which is of no use for random access.
READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
MIN_OPEN_FILES, MAX_OPEN_FILES = 8, 4096
OTHER_FILES = 256  # libraries, sockets, logs and checkpoints of the same process


class RecordFiles(Sequence[tf_example_pb2.Example]):
    """The records of several files in their order: `files[i]` is a parsed `tf.train.Example`.

    A process keeps its most recently read files open, at most a quarter of its open-file limit, because training and
    evaluation read at the same time; reopening one takes 0.1 ms on a local disk. Picklable: each process opens the
    files itself.

    Args:
        shards: file instructions of TFDS: a file, and which of its records.
    """

    def __init__(self, shards: Sequence[Any]):
        self._shards = [(str(shard.filename), shard.skip) for shard in shards]
        self._ends = list(itertools.accumulate(shard.take for shard in shards))
        self._open()

    def _open(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = min(max((soft - OTHER_FILES) // 4, MIN_OPEN_FILES), MAX_OPEN_FILES)
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tf_example_pb2.Example:
        """Read a record.

        Raises:
            DataError: its bytes are damaged.
            MachineError: they cannot be read.
            IndexError: the index is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        file, skip = self._shards[number]
        position = skip + index - (self._ends[number - 1] if number else 0)
        try:
            [record] = self._reader(number).read([position])
            return tf_example_pb2.Example.FromString(record)
        except Exception as error:  # ArrayRecord and clients of buckets raise their own types
            if fault := describe_fault(error, file):
                raise MachineError(fault) from error
            if isinstance(error, RuntimeError | DecodeError):  # raised by ArrayRecord for damaged files
                raise DataError(f"the record cannot be read ({type(error).__name__}: {reason(error)})") from error
            raise

    def _reader(self, number: int) -> Any:
        with self._lock:
            reader = self._readers.pop(number, None)
            if reader is None:
                reader = array_record_module.ArrayRecordReader(self._shards[number][0], **READER_OPTIONS)
            self._readers[number] = reader
            if len(self._readers) > self._max_open:
                self._readers.popitem(last=False)  # closed when no other thread reads from it any more
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
