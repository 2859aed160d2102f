"""Files of torch.save: tensors are read bit for bit, and no code is run."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import read_file
from tests.weights.test_files import assert_refused

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

WEIGHTS = {"stem.weight": torch.arange(24.0).reshape(2, 3, 4), "head.bias": torch.tensor([1.0, 3.14]).bfloat16()}


class Evil:
    """Touch a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def read(tmp_path, value, **how):
    torch.save(value, tmp_path / "a.pth", **how)
    return read_file(tmp_path / "a.pth")


def assert_weights(content, wrapper=None):
    assert content.wrapper == wrapper
    assert set(content.tensors) == set(WEIGHTS)
    np.testing.assert_array_equal(content.tensors["stem.weight"], np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    assert content.tensors["head.bias"].dtype == ml_dtypes.bfloat16
    assert content.tensors["head.bias"].view(np.int16).tolist() == WEIGHTS["head.bias"].view(torch.int16).tolist()
    assert content.dtypes == {"stem.weight": "float32", "head.bias": "bfloat16"}
    assert content.shapes == {"stem.weight": (2, 3, 4), "head.bias": (2,)}


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
def test_a_state_dict_is_read_in_the_format_of_today_and_of_old(tmp_path, container, how):
    assert_weights(read(tmp_path, container(WEIGHTS), **how))


def test_parameters_and_views_are_read(tmp_path):
    content = read(tmp_path, {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.arange(6.0).reshape(2, 3).T})
    np.testing.assert_array_equal(content.tensors["a"], np.ones(2))
    np.testing.assert_array_equal(content.tensors["b"], [[0, 3], [1, 4], [2, 5]])


def test_a_checkpoint_that_was_packed_again_with_compression_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_weights(read_file(tmp_path / "b.pth"))


def test_a_zip_under_the_name_of_safetensors_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.safetensors")
    assert_weights(read_file(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "state_dict", "model"])
def test_wrapped_weights_are_found_and_named(tmp_path, wrapper):
    wrapped = {"epoch": 3, wrapper: {f"module.{k}": v for k, v in WEIGHTS.items()}, "args": argparse.Namespace(lr=0.1)}
    assert_weights(read(tmp_path, wrapped), wrapper)


def test_averaged_weights_come_first_if_there_are_any(tmp_path):
    others = {"model": {"a": torch.ones(1)}, "state_dict": {"b": torch.ones(1)}}
    assert_weights(
        read(tmp_path, {**others, "model_ema": {"c": torch.ones(1)}, "state_dict_ema": WEIGHTS}), "state_dict_ema"
    )
    assert_weights(read(tmp_path, {**others, "model_ema": WEIGHTS, "state_dict_ema": None}), "model_ema")
    assert_weights(read(tmp_path, {"model": "mambaout_tiny", "state_dict": WEIGHTS}), "state_dict")


def test_an_entry_of_a_file_is_read_by_its_name(tmp_path):
    file = {"model_ema": {"a": torch.ones(1)}, "model": WEIGHTS, "epoch": 3}
    torch.save(file, tmp_path / "a.pth")
    assert_weights(content := read_file(tmp_path / "a.pth", "model"), "model")
    assert content.ignored == ("model_ema (dict)", "epoch (int)")
    with pytest.raises(WeightsError, match=r"has no state dict in an entry 'epoch'; .*: 'model_ema', 'model'$"):
        read_file(tmp_path / "a.pth", "epoch")


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda evil: evil, r"contains a (posix\.system|Placeholder|Ignored)"),
        (lambda evil: [evil], "contains a list"),
        (lambda evil: {"a": evil}, r"contains 'a' \(posix\.system\)"),
    ],
)
def test_code_is_not_run_and_is_named(tmp_path, how, wrap, words):
    evil = Evil(tmp_path / "ran")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(wrap(evil), tmp_path / "a.pth", **how)
    assert_refused(tmp_path / "a.pth", f"{words}; expected a state dict")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_another_program_is_not_run(tmp_path, protocol):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol))
    assert_refused(
        tmp_path / "a.pth",
        "file that is damaged or was not|, which was not run|objects other than tensors|neither a safetensors nor",
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.nn.Linear(2, 2), r"contains a torch\.nn\.modules\.linear\.Linear; expected a state dict"),
        ({"p": pathlib.PurePosixPath("x")}, r"contains 'p' \(pathlib\.PurePosixPath\); expected a state dict"),
        ([torch.ones(1)], "contains a list; expected a state dict"),
        (torch.ones(1), "contains a Tensor; expected a state dict"),
        ({"model": {"a": [1]}}, r"contains 'model' \(dict\); expected a state dict"),
        ({0: torch.ones(1)}, r"contains 0 \(Tensor\);"),
        ({}, "contains no tensors"),
        (
            {"teacher": WEIGHTS, "student": WEIGHTS},
            r"contains 'teacher' \(dict\), 'student' \(dict\); expected a state dict",
        ),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, value, words):
    torch.save(value, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", words)


@pytest.mark.parametrize("odd", [torch.ones(2, dtype=torch.float8_e4m3fn), torch.ones(2, 2).to_sparse()])
def test_a_tensor_that_numpy_cannot_hold_is_named(tmp_path, odd):
    content = read(tmp_path, {"odd": odd, "fine": torch.ones(1)})
    assert content.tensors["fine"].tolist() == [1]
    with pytest.raises(
        WeightsError,
        match=r"a.pth has 'odd' as torch.float.*which NumPy does not support; expected a dense tensor of float32 or bf",
    ):
        content.tensors["odd"]


@pytest.mark.parametrize("length", [4, 300, -50, -1])
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_cut_short_is_refused(tmp_path, length, how):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pth", **how)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[:length])
    assert_refused(tmp_path / "a.pth", "is damaged or|empty")


@pytest.mark.parametrize("names", [["x.txt"], ["a/x.txt"], ["a/data.pkl"], []])
def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path, names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "hello")
    (tmp_path / "a.pth").write_bytes(content.getvalue())
    assert_refused(tmp_path / "a.pth", "a zip file that is damaged or was not written|neither a safetensors")


def test_a_zip_whose_directory_is_damaged_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(b"PK\6\7") + 4] = 1  # the number of a disk
    (tmp_path / "a.pth").write_bytes(content)
    assert_refused(tmp_path / "a.pth", "a zip file that is damaged or was not written by torch.save")


def test_a_torchscript_program_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", r"is a TorchScript program, which was not run; save model.state_dict\(\) instead")
