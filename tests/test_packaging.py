"""The core runs on its few dependencies, and what needs an extra names it."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from mambaout_jax import extras
from mambaout_jax.extras import install_command
from tests.test_layering import ROOT, package_of, sources

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CORE = {"flax", "jax", "jaxtyping", "ml_dtypes", "numpy", "safetensors"}
# Distributions that are not named as the module that they have.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}
# Modules that a requirement brings because its interface is made of them.
BROUGHT = {"google": "tensorflow-datasets"}
# Of a training environment, what flax itself imports.
OF_FLAX = {"absl", "etils", "optax"}
# Make imports fail as if a package were not installed.
BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
"""


def run_without(modules, program, *arguments):
    command = [sys.executable, "-c", BLOCK + program, ",".join(modules), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


def names(requirements):
    return {re.sub("[-_.]+", "-", Requirement(line).name.lower()) for line in requirements}


def required(extra):
    """Return the distributions of an extra, and of the extras that it includes."""
    found = set()
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found = found.union(*(required(other) for other in requirement.extras))
        else:
            found |= names([line])
    return found


@pytest.mark.run
def test_core_builds_runs_and_converts_models_without_any_extra(tmp_path):
    blocked = {module for modules in extras.MODULES.values() for module in modules} - OF_FLAX | {"tensorstore"}
    program = """
import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

import mambaout_jax as mo

folder = Path(sys.argv[2])
model = mo.create_model("test_mambaout", num_classes=5)
variables = model.init(jax.random.key(0))
images = np.ones((1, 32, 32, 3), np.float32)
logits = model.apply(variables, images)
save_file(mo.to_torch(model, variables), folder / "model.safetensors")
(folder / "config.json").write_text(json.dumps({"architecture": model.name, "num_classes": 5}))
for read in (mo.from_torch(model, folder / "model.safetensors"), mo.load_pretrained(str(folder))[1]):
    np.testing.assert_array_equal(model.apply(read, images), logits)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""
    done = run_without(blocked, program, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.run
@pytest.mark.parametrize(
    "package", ["data", "distributed", "pages", "run.errors", "tasks", "train.loop", "export", "plan.plan"]
)
def test_a_package_that_needs_an_extra_names_it_and_what_is_missing(package):
    program = f"""
from mambaout_jax.extras import MissingExtraError, install_command
try:
    import mambaout_jax.{package}
except MissingExtraError as error:
    print(error)
assert not {{"jax", "tensorflow_datasets"}} & set(sys.modules)
"""
    done = run_without({"grain", "sklearn"}, program)
    assert done.returncode == 0, done.stderr
    top = package.partition(".")[0]
    assert done.stdout == f"mambaout_jax.{top} requires grain, sklearn; {install_command('train')}\n"


@pytest.mark.run
def test_functions_of_the_library_that_need_an_extra_name_it():
    program = """
import mambaout_jax as mo
from mambaout_jax.extras import MissingExtraError
for name in ("load_run", "preprocess", "predict"):
    try:
        getattr(mo, name)
    except MissingExtraError as error:
        print(error)
"""
    done = run_without({"grain"}, program)
    assert done.returncode == 0, done.stderr
    packages = "run", "tasks", "tasks"
    lines = [f"mambaout_jax.{package} requires grain; {install_command('train')}" for package in packages]
    assert done.stdout.splitlines() == lines


@pytest.mark.run
def test_main_names_the_extra_of_training():
    program = "import runpy; sys.argv = ['main.py', '--workdir=x']; runpy.run_path('main.py', run_name='__main__')"
    done = run_without({"absl", "ml_collections"}, program)
    assert done.returncode == 2
    assert done.stderr == f"error: train requires absl, ml_collections; {install_command('train')}\n"


@pytest.mark.run
@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        ("mo.load_pretrained('hf-hub:a/b')", "huggingface_hub", "hub"),
        ("mo.load_pretrained(sys.argv[2])", "torch", "torch"),
        ("verify.timm_logits(mo.create_model('test_mambaout'), sys.argv[2], None)", "timm", "torch"),
    ],
)
def test_a_function_that_needs_an_extra_names_it(call, package, extra, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\3\4")
    program = f"""
import mambaout_jax as mo
from mambaout_jax.extras import MissingExtraError
from mambaout_jax.weights import verify
try:
    {call}
except MissingExtraError as error:
    print(error)
"""
    done = run_without({package}, program, tmp_path / "a.pth")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert f"No module named {package!r}" in done.stdout
    assert done.stdout.endswith(f"; {install_command(extra)}\n")


def test_version_is_the_same_everywhere():
    stated = {
        "CITATION.cff": r"^version: (.*)$",
        "README.md": r"^  version = \{(.*)\},$",
    }
    for name, pattern in stated.items():
        (version,) = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert version == PROJECT["version"], name


def test_every_file_of_the_package_is_installed():
    package = ROOT / "mambaout_jax"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["mambaout_jax"]
    installed = {path for pattern in ("**/*.py", *patterns) for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files == installed


def test_modules_of_extras_are_those_of_pyproject():
    for extra, modules in extras.MODULES.items():
        brought = names(DISTRIBUTIONS.get(module, module) for module in modules)
        assert brought <= required(extra)
    imported_only_by_others = {"importlib-resources"}
    assert required("train") - required("hub") - imported_only_by_others == names(
        DISTRIBUTIONS.get(module, module) for module in extras.MODULES["train"]
    )
    assert names(PROJECT["dependencies"]) == names(CORE)


def test_all_has_every_extra_but_those_of_developers():
    everything = {extra for extra in PROJECT["optional-dependencies"] if extra not in ("all", "test", "docs")}
    assert required("all") == set().union(*map(required, everything))


def unguarded_imports(root):
    """Yield the imports of other packages that fail without a word where an extra is not installed."""
    for path, tree in sources(root, "mambaout_jax/**/*.py"):
        guarded = {id(node): extra for extra, block in importing_blocks(tree) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top in {"mambaout_jax", *CORE, *BROUGHT, *sys.stdlib_module_names}:
                    continue
                extra = next((extra for extra, has in extras.MODULES.items() if top in has), None)
                if extra is None:
                    yield f"{path}:{node.lineno} imports {module}, which is in no extra"
                elif guarded.get(id(node)) != extra and extra not in checked_extras(root, package_of(path)):
                    yield f"{path}:{node.lineno} imports {module} without naming the extra {extra}"


def importing_blocks(tree):
    """Yield (extra, block) of every `with importing(extra, ...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            for item in node.items:
                match item.context_expr:
                    case ast.Call(func=ast.Name(id="importing"), args=[ast.Constant(value=extra), *_]):
                        yield extra, node


def checked_extras(root, package):
    """Return the extras that `__init__.py` of a package checks before anything else of it is imported."""
    path = root / "mambaout_jax" / package / "__init__.py"
    for node in ast.parse(path.read_text()).body if path.exists() else ():
        match node:
            case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module="mambaout_jax.extras"):
                continue
            case ast.Expr(value=ast.Call(func=ast.Name(id="check_installed"), args=[ast.Constant(value=extra), _])):
                return {extra}
            case _:
                break
    return set()


@pytest.mark.slow
def test_imports_of_extras_are_guarded():
    assert list(unguarded_imports(ROOT)) == []


GUARD = "from mambaout_jax.extras import check_installed\n"


@pytest.mark.parametrize(
    "files",
    [
        {"weights/hub.py": "def f():\n    from huggingface_hub import errors"},
        {"weights/hub.py": "with importing('torch', 'x'):\n    import huggingface_hub"},
        {"ops/a.py": "import PIL.Image"},
        {"ops/a.py": "import pandas"},
        {"data/a.py": "import grain", "data/__init__.py": ""},
        {"data/a.py": "import torch", "data/__init__.py": f"{GUARD}check_installed('train', __name__)"},
        {"data/a.py": "import cv2", "data/__init__.py": f"{GUARD}from . import a\ncheck_installed('train', __name__)"},
    ],
    ids=lambda files: " ".join(files.values()),
)
def test_an_unguarded_import_is_seen(files, tmp_path):
    for name, text in files.items():
        path = tmp_path / "mambaout_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(list(unguarded_imports(tmp_path))) == 1
