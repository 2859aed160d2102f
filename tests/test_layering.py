"""The program keeps its invariants of structure: who imports whom, what is banned, how long things get.

A law is a function from the repository's root to the places that break it. Each is run on the program, and on
lines that break it, so that no law passes because it looks at nothing.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

from mambaout_jax.models import families
from mambaout_jax.tasks.registry import BUILT_IN

ROOT = Path(__file__).parent.parent
FOLDERS = ("mambaout_jax", "configs", "benchmarks", "tests")

# Package -> the packages that it may import; what those may import it may import as well. A line may
# name only packages above it, which rules out cycles.
IMPORTS = {
    "errors": set(),
    "words": set(),
    "version": set(),
    "checks": set(),
    "experiments": set(),
    "extras": {"errors"},
    "process": set(),
    "storage": set(),
    "machine": {"errors"},
    "plugins": {"errors"},
    "supervisor": {"process", "words"},
    "pages": {"extras"},
    "ops": set(),
    "data": {"process", "storage", "machine", "checks", "extras", "words"},
    "distributed": {"extras", "words"},
    "models": {"ops", "plugins", "checks", "words"},
    "weights": {"models", "process", "storage", "machine", "extras", "words"},
    "tasks": {"models", "data", "distributed", "pages", "checks"},
    "run": {"tasks", "weights", "supervisor", "experiments"},
    "export": {"run", "version"},
    "evaluate": {"export"},
    "report": {"run"},
    "train": {"evaluate"},
    "analyze": {"run"},
    "demo": {"export", "analyze", "pages"},
    "plan": {"train"},
    "study": {"analyze", "train", "report"},
    "cli": {"study", "plan", "demo"},
    "__init__": {"run", "version"},
    "__main__": {"cli", "__init__"},
    "main": {"__main__"},
}
BANNED = {
    "flax.nnx.Optimizer": "it costs ten times the dispatch of jax.jit on plain dicts",
    "flax.nnx.cached_partial": "it costs ten times the dispatch of jax.jit on plain dicts",
    "flax.nnx.grad": "it costs ten times the dispatch of jax.jit on plain dicts",
    "flax.nnx.jit": "it costs ten times the dispatch of jax.jit on plain dicts",
    "flax.nnx.scan": "it costs ten times the dispatch of jax.jit on plain dicts",
    "flax.nnx.value_and_grad": "it costs ten times the dispatch of jax.jit on plain dicts",
    "jax.experimental.pjit": "jax.jit does it",
    "jax.experimental.shard_map": "it is jax.shard_map now",
    "jax.pmap": "jax.jit on a mesh does it",
}
# Where a ConfigDict is read: everything below takes plain arguments.
CONFIG_READERS = {"mambaout_jax/run/config.py", "mambaout_jax/run/config_file.py"}
TORCH = {"timm", "torch", "torchvision"}
# Names of families, of their models and of tasks, by the folder that may know them; so may the registries, and the
# list of the library's functions.
REGISTRIES = {"mambaout_jax/models/registry.py", "mambaout_jax/tasks/registry.py", "mambaout_jax/__init__.py"}
# Where another meaning of such a name is: files of COCO have a field "segmentation".
OTHER_MEANINGS = {
    "mambaout_jax/cli/prepare.py": {"segmentation"},  # a kind of folders
    "mambaout_jax/data/prepare/coco.py": {"segmentation"},
    "mambaout_jax/tasks/detection/": {"segmentation"},
}
OWNED_NAMES = {
    **{f"mambaout_jax/models/{family.name}/": {family.name, *family.variants} for family in families()},
    **{f"mambaout_jax/tasks/{task.name}/": {task.name} for task in BUILT_IN},
}


@functools.cache
def parse(source):
    return ast.parse(source)


def sources(root, *patterns):
    """Yield (path below root, parsed source) of the program's Python files, or of those that match."""
    for pattern in patterns or ("main.py", "configs/**/*.py", "mambaout_jax/**/*.py"):
        for path in sorted(root.glob(pattern)):
            yield path.relative_to(root).as_posix(), parse(path.read_text())


def package_of(path):
    parts = path.removesuffix(".py").split("/")
    return parts[1] if parts[0] == "mambaout_jax" else parts[0]


@functools.cache
def imported(path, tree):
    """Return (name bound, full name imported, line, whether inside a function) of imports, relative ones resolved."""
    found = []
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                bound = name.asname or name.name.split(".")[0]
                found.append((bound, name.name, node.lineno, id(node) in inside))
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *filter(None, [node.module])])
            found += [
                (name.asname or name.name, f"{module}.{name.name}", node.lineno, id(node) in inside)
                for name in node.names
            ]
    return found


def reachable(package):
    return IMPORTS[package].union(*(reachable(other) for other in IMPORTS[package]))


def imports_run_one_way(root):
    for path, tree in sources(root, "main.py", "mambaout_jax/**/*.py"):
        package = package_of(path)
        if package not in IMPORTS:
            yield f"{path}: {package} is not in IMPORTS"
            continue
        for _, name, line, _ in imported(path, tree):
            if name.split(".")[0] != "mambaout_jax":
                continue
            other = name.split(".")[1] if "." in name else "__init__"
            if other != package and other not in reachable(package):
                yield f"{path}:{line} imports {name}"


def reading_imports_nothing_that_writes_datasets(root):
    for path, tree in sources(root, "mambaout_jax/data/**/*.py", "mambaout_jax/tasks/**/*.py"):
        if path.startswith("mambaout_jax/data/prepare/"):
            continue
        for _, name, line, _ in imported(path, tree):
            if f"{name}.".startswith("mambaout_jax.data.prepare."):
                yield f"{path}:{line} imports {name}"


def configs_import_ml_collections_the_defaults_and_the_recipes_alone(root):
    known = {f"mambaout_jax.run.config.{name}" for name in ("default_config", "published_recipes")}
    for path, tree in sources(root, "configs/**/*.py"):
        for _, name, line, _ in imported(path, tree):
            if name.split(".")[0] != "ml_collections" and name not in known:
                yield f"{path}:{line} imports {name}"


def config_dict_stays_above_the_loop(root):
    for path, tree in sources(root, "main.py", "mambaout_jax/**/*.py"):
        for _, name, line, _ in imported(path, tree):
            if name.split(".")[0] == "ml_collections" and path not in CONFIG_READERS:
                yield f"{path}:{line} imports {name}"


def flax_stays_in_models(root):
    for path, tree in sources(root):
        for _, name, line, _ in imported(path, tree):
            if name.split(".")[0] == "flax" and package_of(path) != "models":
                yield f"{path}:{line} imports {name}"


def torch_stays_in_functions_of_weights(root):
    for path, tree in sources(root):
        for _, name, line, in_function in imported(path, tree):
            if name.split(".")[0] in TORCH and not (in_function and package_of(path) == "weights"):
                yield f"{path}:{line} imports {name}"


def tensorflow_stays_in_functions_of_prepare(root):
    for path, tree in sources(root):
        for _, name, line, in_function in imported(path, tree):
            if name.split(".")[0] == "tensorflow" and not (
                in_function and path == "mambaout_jax/data/prepare/builders.py"
            ):
                yield f"{path}:{line} imports {name}"


def nothing_banned_is_used(root):
    for path, tree in sources(root):
        names = {bound: name for bound, name, _, _ in imported(path, tree)}
        # `import jax.numpy` binds jax.
        names |= {bound: bound for bound, name in names.items() if name.startswith(f"{bound}.")}
        used = [(name, line) for _, name, line, _ in imported(path, tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                root_name, *attributes = ast.unparse(node).split(".")
                used.append((".".join([names.get(root_name, ""), *attributes]), node.lineno))
        for name, line in used:
            for banned, reason in BANNED.items():
                if name == banned or name.startswith(f"{banned}."):
                    yield f"{path}:{line} uses {banned}: {reason}"


def strings_and_identifiers(tree):
    """Yield (text, line) of every string literal, identifier and part of an imported module's name."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) | ast.Name(id=text) | ast.Attribute(attr=text):
                yield text, node.lineno
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.arg(arg=text):
                yield text, node.lineno
            case ast.keyword(arg=str(text)):
                yield text, node.value.lineno
            case ast.alias(name=name, asname=bound):
                yield from ((text, node.lineno) for text in (*name.split("."), bound))
            case ast.ImportFrom(module=str(name)):
                yield from ((text, node.lineno) for text in name.split("."))


def families_and_tasks_are_named_by_their_folders_and_registries_alone(root):
    for path, tree in sources(root, "mambaout_jax/**/*.py"):
        if path in REGISTRIES:
            continue
        foreign = {name for folder, names in OWNED_NAMES.items() if not path.startswith(folder) for name in names}
        foreign -= {name for place, names in OTHER_MEANINGS.items() if path.startswith(place) for name in names}
        for text, line in strings_and_identifiers(tree):
            if text in foreign:
                yield f"{path}:{line} names {text}"


def errors_are_printed_for_people(root):
    """Find errors of the system that are formatted as "[Errno 13] ..."; `errors.reason` gives their text."""
    for path, tree in sources(root):
        for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
            for node in ast.walk(handler):
                formatted = isinstance(node, ast.FormattedValue) and ast.unparse(node.value) == handler.name
                of_system = {"OSError", "Exception", "PermissionError"} & set(
                    re.findall(r"\w+", ast.unparse(handler.type))
                )
                if formatted and (of_system or node.conversion == ord("r")):
                    yield f"{path}:{node.lineno} formats {handler.name}"


def there_is_no_utils(root):
    for pattern in ("utils.py", *(f"{folder}/**/utils.py" for folder in FOLDERS)):
        yield from (path.relative_to(root).as_posix() for path in root.glob(pattern))


def functions_are_short(root):
    everything = ("main.py", *(f"{folder}/**/*.py" for folder in FOLDERS))
    for path, tree in sources(root, *everything):
        text = (root / path).read_text().splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            explained = first > 1 and text[first - 2].lstrip().startswith("#")
            lines = node.end_lineno - node.lineno + 1
            if lines > 80 and not explained:
                yield f"{path}:{node.lineno} {node.name}: {lines} lines and no comment above it that says why"


def what_is_public_has_a_docstring(root):
    def undocumented(nodes, prefix):
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{prefix}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, prefix)

    for path, tree in sources(root, "main.py", "mambaout_jax/**/*.py"):
        yield from undocumented(tree.body, path)


LAWS = {
    law: dict(broken)
    for law, *broken in [
        (
            imports_run_one_way,
            ("mambaout_jax/ops/conv.py", "from mambaout_jax.models import layers"),
            ("mambaout_jax/data/pipeline.py", "from ..distributed import mesh"),
            ("mambaout_jax/models/layers.py", "def f():\n    import mambaout_jax.train.loop"),
            ("mambaout_jax/train/loop.py", "import mambaout_jax as mo"),
            ("mambaout_jax/weights/timm.py", "from mambaout_jax import data"),
            ("mambaout_jax/helpers/text.py", ""),
            ("mambaout_jax/cli/train.py", "from mambaout_jax.__main__ import main"),
        ),
        (
            reading_imports_nothing_that_writes_datasets,
            ("mambaout_jax/data/sources.py", "from mambaout_jax.data.prepare.builders import prepare_digits"),
            ("mambaout_jax/data/names.py", "def f():\n    from mambaout_jax.data import prepare"),
            ("mambaout_jax/tasks/classification/source.py", "from ...data.prepare import ensure_prepared"),
        ),
        (configs_import_ml_collections_the_defaults_and_the_recipes_alone, ("configs/digits.py", "import jax")),
        (
            config_dict_stays_above_the_loop,
            ("mambaout_jax/train/step.py", "import ml_collections"),
        ),
        (
            flax_stays_in_models,
            ("mambaout_jax/train/step.py", "from flax import nnx"),
            ("main.py", "import flax.nnx as nnx"),
        ),
        (
            torch_stays_in_functions_of_weights,
            ("mambaout_jax/weights/read.py", "import torch"),
            ("mambaout_jax/cli/convert.py", "def f():\n    from timm import create_model"),
        ),
        (
            tensorflow_stays_in_functions_of_prepare,
            ("mambaout_jax/data/prepare/builders.py", "import tensorflow as tf"),
            ("mambaout_jax/data/pipeline.py", "def f():\n    import tensorflow.data"),
        ),
        (
            nothing_banned_is_used,
            ("mambaout_jax/models/a.py", "from flax import nnx\nstep = nnx.jit(lambda x: x)"),
            ("mambaout_jax/models/b.py", "from flax.nnx import Optimizer"),
            ("mambaout_jax/train/c.py", "import jax\nf = jax.pmap(lambda x: x)"),
            ("mambaout_jax/train/d.py", "from jax.experimental import pjit"),
            (
                "mambaout_jax/ops/e.py",
                "import jax.numpy as jnp\nfrom jax.experimental import shard_map",
            ),
            ("mambaout_jax/ops/f.py", "import jax.numpy\njax.pmap"),
        ),
        (
            families_and_tasks_are_named_by_their_folders_and_registries_alone,
            ("mambaout_jax/models/api.py", "from mambaout_jax.models.vit.model import VisionTransformer"),
            ("mambaout_jax/models/__init__.py", "from mambaout_jax.models import mambaout"),
            ("mambaout_jax/models/mambaout/model.py", "import mambaout_jax.models.vit.model"),
            ("mambaout_jax/models/vit/variants.py", "TWIN = 'mambaout_tiny'"),
            ("mambaout_jax/cli/convert.py", "FORMATS = ('timm', 'mambaout')"),
            ("mambaout_jax/plan/a.py", "create_model('vit_tiny_patch16_224')"),
            ("mambaout_jax/plan/b.py", "def f(vit): ..."),
            ("mambaout_jax/plan/c.py", "f(mamba_tiny=1)"),
            ("mambaout_jax/plan/d.py", "x.mambaout"),
            ("mambaout_jax/plan/e.py", "class vit: ..."),
            ("mambaout_jax/plan/f.py", "def mambaout(): ..."),
        ),
        (
            errors_are_printed_for_people,
            ("mambaout_jax/run/files.py", "try:\n    f()\nexcept OSError as e:\n    raise ValueError(f'no: {e!r}')"),
            (
                "mambaout_jax/run/text.py",
                "try:\n    f()\nexcept (OSError, ValueError) as e:\n    raise ValueError(f'no: {e}')",
            ),
        ),
        (there_is_no_utils, ("mambaout_jax/train/utils.py", ""), ("tests/utils.py", "")),
        (functions_are_short, ("mambaout_jax/train/loop.py", "def evaluate():\n" + "    x = 1\n" * 80)),
        (
            what_is_public_has_a_docstring,
            ("mambaout_jax/ops/conv.py", "def conv(x):\n    return x"),
            ("mambaout_jax/models/api.py", 'class Model:\n    """Hold."""\n\n    def apply(self): ...'),
        ),
    ]
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_program_keeps_law(law):
    assert list(law(ROOT)) == []


@pytest.mark.parametrize(
    ("law", "path"),
    [(law, path) for law, broken in LAWS.items() for path in broken],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_law_sees_what_breaks_it(law, path, tmp_path):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(LAWS[law][path])
    assert any(path in place for place in law(tmp_path))
