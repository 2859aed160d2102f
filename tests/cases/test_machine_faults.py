"""Faults of the machine are never reported as faults of the data, nor skipped, wherever data is read."""

import ast
import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from mambaout_jax.data import DataError, EvalTransform, TrainTransform, decode, eval_batches, shard_check, train_batches
from mambaout_jax.data.prepare import shards
from mambaout_jax.data.prepare.folders import list_folder
from mambaout_jax.data.record_files import RecordFiles
from mambaout_jax.evaluate.predict import predict_files
from mambaout_jax.machine import MachineError, describe_fault, is_exhausted, raise_machine_fault, raise_open_file_limit
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.workdir import is_imported, load_config, load_environment
from mambaout_jax.study.findings import read_divergence, read_outcome
from mambaout_jax.tasks.api import Metric
from mambaout_jax.tasks.classification import eval_sets, report
from mambaout_jax.tasks.classification.source import open_source
from mambaout_jax.tasks.classification.task import Classification
from mambaout_jax.tasks.classification.transforms import EvalExample, TrainExample
from mambaout_jax.weights import write_file
from mambaout_jax.weights.files import read_file
from tests.data import photos
from tests.test_layering import package_of, reachable

ROOT = Path(__file__).parent.parent.parent
FAULTS = {
    "open files": OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/data/x"),
    "open files of a library": RuntimeError("open() failed: Too many open files; opening /data/x"),
    "system call of a library": RuntimeError("read() failed: Some other fault; reading /data/x; at byte 5"),
    "disk": OSError(errno.EIO, os.strerror(errno.EIO), "/data/x"),
    "permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/x"),
    "full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"),
    "memory": MemoryError(),
    "memory of a library": RuntimeError("OpenCV: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    "bucket": TimeoutError("no answer within 30 s"),
    "network": ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
}
IMAGE = photos.encode(photos.make_photo(3))


class FailingSource(photos.NumberedSource):
    """A source whose records cannot be read, for a reason of the machine."""

    class_names = ("ant", "bee")

    def __init__(self, error):
        super().__init__(32)
        self.error = error

    def __getitem__(self, index):
        raise self.error


class FailingReader:
    """A reader of ArrayRecord files that fails."""

    def __init__(self, error):
        self.error = error

    def read(self, positions):
        raise self.error


def train_on(error, on_bad_record, monkeypatch, tmp_path):
    transform = TrainExample(TrainTransform((4, 5), channels=1))
    source = FailingSource(error)
    next(train_batches(source, transform, batch_size=4, steps_per_epoch=2, seed=0, on_bad_record=on_bad_record))


def evaluate_on(error, on_bad_record, monkeypatch, tmp_path):
    transform = EvalExample(EvalTransform((4, 5), channels=1), max_labels=1)
    next(eval_batches(FailingSource(error), transform, batch_size=4, on_bad_record=on_bad_record))


def decode_with(function):
    def read(error, on_bad_record, monkeypatch, tmp_path):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(decode.Image, "open", fail)
        monkeypatch.setattr(decode, "jpeg_size", lambda image: None)
        function(IMAGE)

    return read


def read_record(error, on_bad_record, monkeypatch, tmp_path):
    photos.write(photos.Photos, tmp_path, config="whole")
    source = open_source("photos/whole", "train", str(tmp_path))
    monkeypatch.setattr(RecordFiles, "_reader", lambda files, number: FailingReader(error))
    source[0]


def count_labels(error, on_bad_record, monkeypatch, tmp_path):
    task = object.__new__(Classification)
    task.baseline_score(FailingSource(error))


def restrict_classes(error, on_bad_record, monkeypatch, tmp_path):
    source = FailingSource(error)
    source.name = "imagenet_a"
    eval_sets.class_mask(source)


def prepare_a_file(error, on_bad_record, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(shards, "open", fail, raising=False)
    shards.read_item(shards.Item("a", 0, str(tmp_path / "a"), 0, 1))


READERS = {
    "training": train_on,
    "evaluation": evaluate_on,
    "decode_image": decode_with(decode.decode_image),
    "decode_fast": decode_with(decode.decode_fast),
    "record": read_record,
    "majority baseline": count_labels,
    "class mask": restrict_classes,
    "preparation": prepare_a_file,
}


@pytest.mark.parametrize("on_bad_record", ["raise", "skip"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reports_a_fault_of_the_machine_and_skips_nothing(
    reader, fault, on_bad_record, monkeypatch, tmp_path
):
    with pytest.raises((OSError, MemoryError, RuntimeError)) as raised:
        READERS[reader](FAULTS[fault], on_bad_record, monkeypatch, tmp_path)
    assert describe_fault(raised.value)
    assert not isinstance(raised.value, DataError)
    assert "prepare the dataset again" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated (5 bytes not processed)"),
        OSError("cannot identify image file"),
        ValueError("buffer is not large enough"),
        RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch; at byte 5129"),
        SyntaxError("not a TIFF file"),
        DataError("the record has no image"),
    ],
)
def test_bytes_that_do_not_decode_are_no_fault_of_the_machine(error):
    assert not describe_fault(error)


def test_a_damaged_record_is_a_fault_of_the_data(monkeypatch, tmp_path):
    error = RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch; at byte 5129")
    with pytest.raises(DataError, match="hash mismatch"):
        read_record(error, "raise", monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("open files", r"too many open files; the limit of this process is \d+ \(ulimit -n\)"),
        ("open files of a library", r"too many open files; the limit"),
        ("disk", r"/data/x: Input/output error; check the disk"),
        ("full disk", r"no space left for /data/x on the disk mounted at / \([\d,]+ MiB free\); free"),
        ("memory", r"not have enough memory; use fewer workers \(config.data.num_workers\) or smaller batches"),
        ("bucket", "no answer within 30 s"),
    ],
)
def test_the_sentence_names_the_cause(fault, words):
    assert re.search(words, describe_fault(FAULTS[fault]))


def test_full_shared_memory_is_named():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/psm_1")
    assert "shared memory" in describe_fault(error)
    assert "--shm-size" in describe_fault(error)


def test_only_exhausted_resources_end_a_prediction(monkeypatch, tmp_path):
    class Predictor:
        def prepare(self, image):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    task = SimpleNamespace(predictor=lambda model, labels: Predictor())
    run = SimpleNamespace(task=task, model=None, labels={})
    file = tmp_path / "a.jpg"
    file.write_bytes(IMAGE)
    assert is_exhausted(FAULTS["open files"])
    assert not is_exhausted(FAULTS["permission"])
    with pytest.raises(MachineError, match="too many open files"):
        list(predict_files(run, [str(file)]))


# What a handler calls to learn whose fault an exception is, or to show all of it.
ASKS = {"raise_machine_fault", "describe_fault", "is_exhausted", "explain", "report_error", "print_exc"}
BROAD = {"OSError", "Exception", "BaseException"}


def may_ask(path):
    """Return whether the package of a file may import `machine`; those below it leave exceptions to their callers."""
    package = package_of(path.relative_to(ROOT).as_posix())
    return package == "machine" or "machine" in reachable(package)


def handlers_that_blame_others(root):
    """Yield the handlers of errors of the system that neither ask whose fault it was nor end in `raise`."""
    for path in (root / "main.py", *sorted((root / "mambaout_jax").glob("**/*.py"))):
        if not may_ask(ROOT / path.relative_to(root)):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = {"BaseException"} if node.type is None else {ast.unparse(kind) for kind in _types(node.type)}
            called = {ast.unparse(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
            asks = {name.rpartition(".")[2] for name in called} & ASKS
            if caught & BROAD and not asks and ast.unparse(node.body[-1]) != "raise":
                yield f"{path.relative_to(root)}:{node.lineno}"


def _types(node):
    return node.elts if isinstance(node, ast.Tuple) else [node]


def test_every_handler_of_errors_of_the_system_asks_whose_fault_it_was():
    assert list(handlers_that_blame_others(ROOT)) == []


@pytest.mark.parametrize(
    ("handler", "is_seen"),
    [
        ("except OSError:\n    return None", True),
        ("except (ValueError, OSError) as error:\n    raise ValueError(error)", True),
        ("except Exception as error:\n    found = None", True),
        ("except:\n    pass", True),
        ("except OSError as error:\n    raise_machine_fault(error)\n    return None", False),
        ("except BaseException:\n    clean()\n    raise", False),
        ("except FileNotFoundError:\n    return None", False),
    ],
)
def test_the_law_sees_handlers_that_do_not_ask(handler, is_seen, tmp_path):
    (tmp_path / "main.py").touch()
    (tmp_path / "mambaout_jax" / "run").mkdir(parents=True)
    body = "\n".join(f"    {line}" for line in f"try:\n    f()\n{handler}".split("\n"))
    (tmp_path / "mambaout_jax" / "run" / "a.py").write_text(f"def g():\n{body}\n")
    assert list(handlers_that_blame_others(tmp_path)) == (["mambaout_jax/run/a.py:4"] if is_seen else [])


MACHINE_CODES = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOMEM]


@pytest.mark.parametrize("code", MACHINE_CODES)
@pytest.mark.parametrize("to_write", [False, True])
def test_a_fault_of_the_machine_is_raised(code, to_write):
    with pytest.raises(MachineError):
        raise_machine_fault(OSError(code, os.strerror(code), "/data/x"), to_write=to_write)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST])
def test_a_path_that_does_not_fit_is_a_fault_of_the_user(code):
    assert raise_machine_fault(OSError(code, os.strerror(code), "/data/x")) is None


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permission_is_a_reason_to_write_elsewhere_but_not_to_repair_a_file(code):
    raise_machine_fault(OSError(code, os.strerror(code), "/data/x"), to_write=True)
    with pytest.raises(MachineError, match=r"/data/x: .*; check the disk and its permissions"):
        raise_machine_fault(OSError(code, os.strerror(code), "/data/x"))


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("code", [*MACHINE_CODES, errno.EACCES])
def test_a_score_that_cannot_be_read_is_kept(code, monkeypatch, tmp_path):
    file = epath.Path(tmp_path) / "5" / "metrics" / "metrics"
    file.parent.mkdir(parents=True)
    file.write_text('{"top1": 5.0}')
    with monkeypatch.context() as patch:
        patch.setattr(type(file), "read_text", failing(OSError(code, os.strerror(code), str(file))))
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            Checkpoints(epath.Path(tmp_path), Metric("top1", "top-1", "%"))
    assert file.exists()


def read_results(folder, patch, error):
    patch.setattr(type(folder), "read_text", failing(error))
    read_outcome(folder, "top1", 8)


def read_divergence_record(folder, patch, error):
    (folder / "diverged.json").write_text('{"reason": "x"}')
    patch.setattr(type(folder), "read_text", failing(error))
    read_divergence(folder, 0)


def read_run_environment(folder, patch, error):
    patch.setattr(type(folder), "read_text", failing(error))
    load_environment(folder)


def read_run_config(folder, patch, error):
    patch.setattr(type(folder), "read_text", failing(error))
    load_config(folder)


def ask_for_imported(folder, patch, error):
    patch.setattr(type(folder), "read_text", failing(error))
    is_imported(folder)


def write_weights(folder, patch, error):
    write_file(folder / "a.safetensors", {"a": np.zeros(2, np.float32)}, check=failing(error))


def read_weights(name, opener):
    def read(folder, patch, error):
        write_file(folder / name, {"a": np.zeros(2, np.float32)})
        patch.setattr(f"mambaout_jax.weights.{opener}.open", failing(error), raising=False)
        read_file(folder / name)

    return read


def list_images(folder, patch, error):
    patch.setattr(os, "scandir", failing(error))
    list_folder(Path(folder))


def open_unlisted_version(folder, patch, error):
    (folder / "photos" / "1.0.0").mkdir(parents=True)

    def list_names(place):
        if place.name == "1.0.0":
            raise error
        return [path.name for path in place.iterdir()]

    patch.setattr(shard_check, "_list_names", list_names)
    open_source("photos", "train", str(folder))


def read_a_picture(folder, patch, error):
    report._thumbnail(FailingSource(error), 0)


PLACES = {
    "results of a study": read_results,
    "divergence of a study": read_divergence_record,
    "environment": read_run_environment,
    "config": read_run_config,
    "kind of a workdir": ask_for_imported,
    "writing weights": write_weights,
    "weights": read_weights("a.safetensors", "files"),
    "images": list_images,
    "version of a dataset": open_unlisted_version,
    "picture": read_a_picture,
}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("place", PLACES)
def test_no_file_is_blamed_for_a_fault_of_the_machine(place, code, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(MachineError):
        PLACES[place](epath.Path(tmp_path), patch, OSError(code, os.strerror(code), "/data/x"))


@pytest.mark.run
def test_the_limit_of_open_files_becomes_the_hard_one():
    program = (
        "import resource; from mambaout_jax.machine import raise_open_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128)); raise_open_file_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out.strip() == "(128, 128)"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_open_file_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard == before[1]


def test_a_split_of_more_files_than_may_be_open_is_read(tmp_path, monkeypatch):
    config = photos.tfds.download.DownloadConfig(try_download_gcs=False, num_shards=6)
    photos.Photos(data_dir=tmp_path, config="whole", file_format="array_record").download_and_prepare(
        download_config=config
    )
    whole = [*open_source("photos/whole", "train", str(tmp_path))]
    source = open_source("photos/whole", "train", str(tmp_path))
    source._records._files._max_open = 2
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    assert [source[index] for index in order] == [whole[index] for index in order]
    assert len(source._records._files._readers) == 2
