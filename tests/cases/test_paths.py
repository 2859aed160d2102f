"""Folders of users whose names have the characters of a pattern are used literally, or refused before any work."""

import ast
from pathlib import Path

import pytest
from etils import epath

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.names import data_root
from mambaout_jax.data.prepare import images
from mambaout_jax.export.torch import import_weights
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.workdir import claim_workdir, has_checkpoints, load_run
from mambaout_jax.storage import find_pattern
from mambaout_jax.study.study import _claimed
from mambaout_jax.weights import read_checkpoint, write_file
from tests.train import tiny, written_run

PACKAGE = Path(__file__).parents[2] / "mambaout_jax"
NAMES = [f"digit {label}" for label in range(10)]
PATTERNS = ["run[1]", "depths=[1,1]", "a*b", "what?", "sweep[0]/run"]

# Every search by a pattern, with the folder that it starts from. pathlib takes that folder literally.
SEARCHES = [
    ("data/prepare/dataset_writer.py", "folder.rglob"),
    ("data/prepare/imagenet.py", "folder.glob"),
    ("models/registry.py", "fnmatch.fnmatchcase"),  # names of models
    ("plan/kernels.py", "folder.glob"),
    ("run/logs.py", "folder.rglob"),
    ("run/workdir.py", "place.rglob"),
]
PATTERN_FUNCTIONS = {"glob", "rglob", "iglob", "fnmatch", "fnmatchcase", "filter"}


def searches(package):
    """Yield file and function of every search by a pattern, by a method or a function of the standard library."""
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("glob", "fnmatch"):
                yield place, f"from {node.module}"
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            if node.func.attr in PATTERN_FUNCTIONS and not name.startswith("jax."):
                yield place, name


@pytest.mark.slow
def test_every_search_by_a_pattern_is_listed():
    assert list(searches(PACKAGE)) == SEARCHES


def test_the_law_sees_functions_and_second_searches(tmp_path):
    lines = ["from glob import glob", "a.glob('x')", "a.glob('y')", "fnmatch.fnmatchcase(a, b)"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    found = [name for _, name in searches(tmp_path)]
    assert found == ["from glob", "a.glob", "a.glob", "fnmatch.fnmatchcase"]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_workdir_that_is_a_pattern_is_refused_before_it_is_created(tmp_path, name):
    config = tiny.config()
    for use in (
        lambda path: claim_workdir(path, config),
        lambda path: Checkpoints(epath.Path(path) / "checkpoints"),
        lambda path: import_weights("missing.safetensors", path),
    ):
        with pytest.raises(RunError, match=r"in its path, which .* pattern"):
            use(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PATTERNS)
def test_a_data_dir_that_is_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"in its path, which .* pattern"):
        data_root(str(tmp_path / name))


def test_the_default_data_dir_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "tfds[1]"))
    with pytest.raises(DataError, match="pattern"):
        data_root(None)


def test_the_folder_for_uploads_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "home[1]").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home[1]"))
    with pytest.raises(DataError, match="pattern"):
        images._local_folder(epath.Path("gs://bucket"), "pets", "1.0.0")


UNDECODABLE = "caf\udce9"


def test_paths_that_are_not_utf8_are_refused_before_any_work(tmp_path):
    for use in (
        lambda path: claim_workdir(path, tiny.config()),
        load_run,
        lambda path: import_weights("missing.safetensors", path),
        data_root,
    ):
        with pytest.raises((RunError, DataError), match="is not UTF-8; rename the folder"):
            use(f"{tmp_path}/{UNDECODABLE}/run")
    assert not list(tmp_path.iterdir())


def test_a_relative_path_inside_such_a_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sweep[1]").mkdir()
    monkeypatch.chdir(tmp_path / "sweep[1]")
    assert "'['" in find_pattern("runs/a")
    with pytest.raises(DataError, match="pattern"):
        data_root("data")


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_a_run_that_was_moved_into_such_a_folder_is_found_and_loaded(tmp_path, name):
    written_run.write(tmp_path / "plain", NAMES)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "plain").rename(tmp_path / name)
    assert has_checkpoints(epath.Path(tmp_path / name))
    assert load_run(tmp_path / name).step == written_run.STEP


@pytest.mark.slow
def test_other_unusual_names_are_used_literally(tmp_path):
    workdir = tmp_path / "a b#1 100%25 {x,y} @2 ü~!$&'()+;=]"
    written_run.write(workdir, NAMES)
    assert load_run(workdir).step == written_run.STEP
    assert not find_pattern(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_weights_files_may_have_such_names(tmp_path, name):
    written_run.write(tmp_path / "run", NAMES)
    tensors = {"a": load_run(tmp_path / "run").variables["params"]["head"]["fc"]["bias"]}
    (tmp_path / name).mkdir(parents=True)
    write_file(tmp_path / name / "w[1].safetensors", tensors)
    assert list(read_checkpoint(tmp_path / name / "w[1].safetensors").shapes) == ["a"]


def test_a_variant_of_a_study_that_is_a_pattern_is_refused(tmp_path):
    plan = {"variants": {"baseline": {}, "depths=[1]": {}}}
    with pytest.raises(RunError, match="pattern"), _claimed(tmp_path / "study", plan, ()):
        pass
    assert not list(tmp_path.iterdir())
