"""Weights files: round trips keep every bit, no code is run, and errors are one sentence."""

import os
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from mambaout_jax.extras import MissingExtraError
from mambaout_jax.machine import MachineError
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import read_file, write_file

TENSORS = {
    "stem.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "half": np.array([1.5, -0.0, 65504], np.float16),
    "short": np.array([[1.0, 3.14, -1e30]], ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float32),
    "count": np.array(7, np.int64),
}
DTYPES = {"stem.weight": "float32", "half": "float16", "short": "bfloat16", "scalar": "float32", "count": "int64"}
needs_torch = pytest.mark.torch
ENDINGS = [".safetensors", *(pytest.param(e, marks=needs_torch) for e in (".pth", ".pt", ".bin", ".pth.tar"))]


def assert_same(found, expected):
    assert list(found) == list(found.keys())
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def assert_refused(path, words):
    with pytest.raises(WeightsError, match=words) as refusal:
        read_file(path)
    assert str(refusal.value).startswith(str(path))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_comes_back_bit_for_bit(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    write_file(path, TENSORS)
    content = read_file(path)
    assert_same(content.tensors, TENSORS)
    assert content.shapes == {name: array.shape for name, array in TENSORS.items()}
    assert content.dtypes == DTYPES
    assert content.wrapper is None
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", [".safetensors", pytest.param(".pth", marks=needs_torch)])
def test_arrays_are_written_as_they_look_however_they_lie_in_memory(tmp_path, ending):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = whole.copy()
    frozen.flags.writeable = False
    odd = {"transposed": whole.T, "every second": whole[::2, 1::2], "reversed": whole[::-1], "frozen": frozen}
    write_file(tmp_path / f"odd{ending}", odd)
    assert_same(read_file(tmp_path / f"odd{ending}").tensors, odd)


def test_metadata_is_what_pytorch_programs_look_for(tmp_path):
    from safetensors import safe_open

    write_file(tmp_path / "a.safetensors", TENSORS)
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_file(tmp_path / "a.safetensors", TENSORS)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.run
def test_a_tensor_is_read_when_it_is_asked_for(tmp_path):
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from mambaout_jax.weights.files import read_file

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        content = read_file(sys.argv[1])
        before = peak()
        total = sum(float(content.tensors[name][0]) for name in content.tensors)
        print(total, peak() - before)
        """
    )
    path = tmp_path / "large.safetensors"
    write_file(path, {f"part {i}": np.full(2**21, i, np.float32) for i in range(24)})  # 8 MiB each
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    total, grown = map(float, run.stdout.split())
    assert total == sum(range(24))
    assert grown < 48


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_models_go_if_all_names_have_them(tmp_path, prefix):
    path = tmp_path / "a.safetensors"
    write_file(path, {prefix + name: array for name, array in TENSORS.items()})
    content = read_file(path)
    assert_same(content.tensors, TENSORS)
    assert content.dtypes == DTYPES
    assert set(content.shapes) == set(TENSORS)


def test_a_prefix_that_one_name_lacks_stays(tmp_path):
    mixed = {"module.a": TENSORS["scalar"], "b": TENSORS["scalar"]}
    write_file(tmp_path / "a.safetensors", mixed)
    assert_same(read_file(tmp_path / "a.safetensors").tensors, mixed)


def test_averages_next_to_a_model_do_not_hide_its_prefix(tmp_path):
    names = [f"stages.0.blocks.0.{layer}.weight" for layer in ("norm", "fc1", "conv", "fc2")]
    averages = ["model_ema.decay", "model_ema.num_updates", *(f"model_ema.{name.replace('.', '')}" for name in names)]
    stored = [*(f"model.{name}" for name in names), *averages]
    write_file(tmp_path / "a.safetensors", dict.fromkeys(stored, TENSORS["scalar"]))
    content = read_file(tmp_path / "a.safetensors")
    assert list(content.shapes) == sorted(names)
    assert set(content.ignored) == set(averages)


@pytest.mark.parametrize("length", [3, 9, 60, -40, -1])
def test_a_safetensors_file_cut_short_is_refused(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write_file(path, TENSORS)
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(path, "damaged")


def test_a_header_longer_than_any_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{" * 100)
    assert_refused(path, "is damaged or not a safetensors file")


def test_the_content_decides_and_not_the_ending(tmp_path):
    write_file(tmp_path / "a.safetensors", TENSORS)
    (tmp_path / "a.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert_same(read_file(tmp_path / "pytorch_model.bin").tensors, TENSORS)


@pytest.mark.parametrize(("name", "content"), [("a.pth", b"hello"), ("config", b"config\nfoo\nbar\n"), ("b.pt", b"c")])
def test_a_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, "neither a safetensors nor a torch.save file")


def test_what_is_no_file_of_weights_is_named(tmp_path):
    assert_refused(tmp_path / "a.pth", "does not exist")
    (tmp_path / "b.pth").mkdir()
    assert_refused(tmp_path / "b.pth", "is not a file")
    os.mkfifo(tmp_path / "c.pth")
    assert_refused(tmp_path / "c.pth", "is not a file")
    assert_refused("/dev/null", "is not a file")
    (tmp_path / "d.pth").touch()
    assert_refused(tmp_path / "d.pth", "is empty")
    (tmp_path / "e.pth").symlink_to("nowhere")
    assert_refused(tmp_path / "e.pth", "is not a file")
    write_file(tmp_path / "f.safetensors", {})
    assert_refused(tmp_path / "f.safetensors", "contains no tensors")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write_file(tmp_path / "a.safetensors", TENSORS)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mambaout_jax.weights.files.open", refuse, raising=False)  # pytest opens files too
    with pytest.raises(MachineError, match=r"a.safetensors: Permission denied; check the disk and its permissions"):
        read_file(tmp_path / "a.safetensors")


def test_a_file_that_shrank_while_it_was_read_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_file(path, TENSORS)
    content = read_file(path)
    os.truncate(path, 100)
    with pytest.raises(
        WeightsError, match=f"{path} has 'stem.weight' as F32, which could not be read; expected float32 or bfloat16"
    ):
        content.tensors["stem.weight"]


def test_pytorch_that_is_missing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK\3\4")
    with pytest.raises(MissingExtraError, match=r'a\.pth requires PyTorch \(.*\); pip install ".*\[torch\]"'):
        read_file(tmp_path / "a.pth")
    with pytest.raises(MissingExtraError, match=r"b\.pth requires PyTorch"):
        write_file(tmp_path / "b.pth", TENSORS)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_what_exists_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("precious")
    with pytest.raises(WeightsError, match=f"{path} exists; .*--force"):
        write_file(path, TENSORS)
    assert path.read_text() == "precious"
    write_file(path, TENSORS, force=True)
    assert_same(read_file(path).tensors, TENSORS)
    assert os.listdir(tmp_path) == [path.name]


def test_only_a_file_is_ever_replaced(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    os.mkfifo(tmp_path / "b.safetensors")
    for name in ("a", "b"):
        with pytest.raises(WeightsError, match="exists and is not a file"):
            write_file(tmp_path / f"{name}.safetensors", TENSORS, force=True)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real.safetensors").write_text("old")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    write_file(tmp_path / "link.safetensors", TENSORS, force=True)
    assert (tmp_path / "link.safetensors").is_symlink()
    assert_same(read_file(tmp_path / "real.safetensors").tensors, TENSORS)


@pytest.mark.parametrize(
    ("name", "tensors", "words"),
    [
        ("a.npz", TENSORS, "unknown extension; expected one of .safetensors, .pth"),
        ("none/a.safetensors", TENSORS, r"cannot be written \(No such file or directory\)"),
        ("a.safetensors", {"a": np.ones(2, np.complex128)}, "complex128; expected float32 or bfloat16"),
        pytest.param("a.pth", {"a": np.array(["x"])}, "<U1, which PyTorch does not support", marks=needs_torch),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, name, tensors, words):
    with pytest.raises(WeightsError, match=words):
        write_file(tmp_path / name, tensors)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, error):
    path = tmp_path / "a.safetensors"
    path.write_text("precious")

    def stop(*_, **__):
        raise error

    monkeypatch.setattr("mambaout_jax.weights.files.sync", stop)
    with pytest.raises(error):
        write_file(path, TENSORS, force=True)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == [path.name]


LIMIT_FILES = ("bash", "-c", 'ulimit -f 10 && exec "$@"', "bash")  # in KiB


def failed_write(folder, name, before):
    """Write 4 MB in a process of its own; give what it says."""
    script = (
        "import sys, numpy as np\n"
        "from mambaout_jax.machine import MachineError\n"
        "from mambaout_jax.weights.errors import WeightsError\n"
        "from mambaout_jax.weights.files import write_file\n"
        "try: write_file(sys.argv[1], {'a': np.ones(10**6, np.float32)}, force=True)\n"
        "except (WeightsError, MachineError) as error: print(error)\n"
    )
    # -B: under the limit, Python would leave truncated bytecode in the cache of the tests.
    command = [*before, sys.executable, "-B", "-c", script, folder / name]
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


ONE_OF_EACH = ["a.safetensors", pytest.param("a.pth", marks=needs_torch)]


@pytest.mark.run
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_file_that_grows_too_large_is_said_and_leaves_what_was_there(tmp_path, name):
    (tmp_path / name).write_text("precious")
    said = failed_write(tmp_path, name, LIMIT_FILES)
    assert said == f"{tmp_path / name} cannot be written (File too large); choose another path"
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.run
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, name):
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no small disk may be mounted here")
    inside = f'{mount} && "$@" && ls -A {tmp_path}'
    said = failed_write(tmp_path, name, before=["unshare", "-m", "sh", "-c", inside, "sh"])
    start = f"no space left for {tmp_path / name} on the disk mounted at {tmp_path} ("
    assert said.startswith(start)
    assert said.endswith(" MiB free); free some space")


@pytest.mark.parametrize("links", [True, False])
def test_what_came_meanwhile_is_not_replaced_where_links_are(tmp_path, monkeypatch, links):
    path = tmp_path / "a.safetensors"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
        write_file(path, TENSORS)
        assert_same(read_file(path).tensors, TENSORS)
        return
    with pytest.raises(WeightsError, match=r"cannot be written [(]File exists"):
        write_file(path, TENSORS, check=lambda draft: path.write_text("precious"))
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == [path.name]
