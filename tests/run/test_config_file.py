"""Every key can be set, unset and mistyped on the command line: the value is right, or one sentence names the key."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

from mambaout_jax import plugins
from mambaout_jax.models import ModelError, families
from mambaout_jax.run.config import known_keys
from mambaout_jax.run.config_file import read_config
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.errors import TaskError
from mambaout_jax.tasks.registry import BUILT_IN
from tests.train import tiny

ROOT = Path(__file__).parents[2]
BASE = """
from mambaout_jax.run.config import default_config

def get_config(model="{model}"):
    config = default_config("{task}")
    config.data.name = "digits"
    config.model.update(name=model{options})
    return config
"""
# Options for models that are built fast, by the first words of their names.
SHALLOW = {
    "mambaout": ", depths=(1, 1, 1, 1)",
    "deit": ", depth=4",
    "vim": ", depth=4",
    "vmamba": ", depths=(1, 1, 1, 1)",
    "plainmamba": ", depth=4",
    "mambavision": ", depths=(1, 1, 2, 2)",
    "upernet_plainmamba": ", depth=4, out_indices=(0, 1, 2, 3)",
}
# For every task, the first variant of every family, or models with its head.
MODELS = {
    "classification": [next(iter(family.variants)) for family in families()],
    "segmentation": ["upernet_mambaout_femto", "upernet_plainmamba_l1"],
    "detection": ["mask_rcnn_mambaout_femto"],
}
CASES = [
    (task.name, model, name)
    for task in BUILT_IN
    for model in MODELS[task.name]
    for name in known_keys({"task": task.name, "model.name": model})
    if model == MODELS[task.name][0] or name.startswith("model.")
]
# Values that require another key to be set as well, or that decide which keys there are.
REQUIRES = {
    "init_head": ["--config.init_from=x"],
    "num_steps": ["--config.optim.schedule=linear"],
    "optim.warmup_steps": ["--config.optim.schedule=linear"],
    "optim.drop_epochs": ["--config.optim.schedule=drops"],
    "model.scan_order": ["--config.model.token_mixer=conv_ssm"],
    "model.expansion_ratio": ["--config.model.conv_ratio=0.25"],
    ("deit_tiny_patch16_224", "model.class_token"): ["--config.model.global_pool=avg"],
    "model.attention": ["--config.model.global_pool=avg"],
    ("localvim_tiny", "model.class_token"): ["--config.model.rope=False"],
    ("localvim_tiny", "model.img_size"): ["--config.model.rope=False"],
    ("vim_tiny", "model.rope"): ["--config.model.class_token=first"],
}
STRUCTURE = ("task", "plugins", "model.name")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the path of an experiment for a task and a model."""
    folder = tmp_path_factory.mktemp("configs")

    def write(task, model, options=""):
        file = folder / f"{task}_{model}_{len(options)}.py"
        file.write_text(BASE.format(task=task, model=model, options=options))
        return str(file)

    return write


def another_value(key):
    """Return a value that the key accepts and that is not its default, and the text for it."""
    kind = key.kinds[-1]
    if isinstance(key.accept, tuple):
        value = next(word for word in key.accept if key.default not in (word, (word,)))
        return (value,) if typing.get_origin(kind) is tuple else value, value
    if typing.get_origin(kind) is tuple:
        item, last = typing.get_args(kind)
        if item is str and key.default:
            value = key.default[::-1]
            return value, str(value)
        if item is str:
            return ("tests.toy.plugin",), "tests.toy.plugin"
        low = max(lowest(key), 0.0) if item is float else int(lowest(key))
        value = (low + 0.5, low + 0.75) if item is float else (64, 96)
        if last is ... and key.default is not None:
            value = tuple(reversed(key.default))
        elif last is ...:
            value = (0, 1, 2, 3) if item is int else (0.25, 0.5, 0.75)
        return value, str(value)
    if kind is bool:
        return not key.default, str(not key.default)
    if kind is str:
        return "something", "something"
    if kind is int:
        value = (
            max(1, int(lowest(key)))
            if key.default is None
            else max(key.default // 2, int(lowest(key)))
            if key.default > 1
            else key.default + 2
        )
        return value, str(value)
    value = 0.5 if key.default != 0.5 else 0.25
    return value, str(value)


def lowest(key):
    low = (key.accept or "..").split("..")[0].removeprefix(">")
    return float(low or 0)


def outside(key):
    """Return the text of a value out of the key's range; None if every value is inside."""
    if isinstance(key.accept, tuple):
        return "no_such_choice"
    if key.accept in (None, ".."):
        return None
    low = lowest(key) - 1
    many = any(typing.get_origin(kind) is tuple for kind in key.kinds)
    return f"({low:g}, {low:g}, {low:g})" if many else f"{low:g}"


@pytest.mark.parametrize(("task", "model", "name"), CASES)
def test_every_key_can_be_set_unset_and_mistyped(files, task, model, name):
    shallow = next((SHALLOW[name] for name in SHALLOW if model.startswith(f"{name}_")), "")
    file, key = files(task, model, shallow), known_keys({"task": task, "model.name": model})[name]
    if name not in STRUCTURE:
        value, text = another_value(key)
        config = read_config(file, [f"--config.{name}={text}", *REQUIRES.get((model, name), REQUIRES.get(name, []))])
        assert config.values[name] == value
        if name.startswith("model."):
            built = config.build_task().build_model({"num_classes": 10})
            options = {**built.options, **built.input_spec._asdict(), "kernels": built.kernels}
            assert options.get(name.removeprefix("model."), built.input_spec.size) == value

    if key.optional:
        assert read_config(file, [f"--config.{name}=None"]).values.get(name) is None
    else:
        assert_one_sentence(file, f"--config.{name}=None", f"config.{name} is unset")

    for mistyped in (name + "x", name.replace("e", "a", 1) if "e" in name else name[:-1]):
        assert_one_sentence(file, f"--config.{mistyped}=1", f"config.{mistyped} is not ", f"config.{name}")
    assert_one_sentence(file, f"--config.{name}", f"--config.{name} has no value")

    if str not in key.kinds and tuple[str, ...] not in key.kinds:
        assert_one_sentence(file, f"--config.{name}=x!", f"config.{name} is 'x!'; ")
    if (text := outside(key)) is not None:
        assert_one_sentence(file, f"--config.{name}={text}", f"config.{name} is ")


def assert_one_sentence(file, change, *words):
    with pytest.raises((RunError, ModelError, TaskError, plugins.PluginError)) as caught:
        read_config(file, [change])
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.task=clasification", "did you mean 'classification'"),
        ("--config.model.name=mambaout_femo", "did you mean 'mambaout_femto'"),
        ("--config.plugins=no_such_package", "plugin 'no_such_package' cannot be imported"),
        ("--config.task=", "expected a non-empty string"),
    ],
)
def test_a_name_that_decides_which_keys_there_are_is_refused_with_the_nearest(files, change, words):
    assert_one_sentence(files("classification", "mambaout_femto"), change, words)


def test_a_model_named_on_the_command_line_takes_its_own_options(files):
    file = files("classification", "mambaout_femto")
    config = read_config(file, ["--config.model.name=deit_tiny_patch16_224", "--config.model.depth=2"])
    assert config.model == {"name": "deit_tiny_patch16_224", "depth": 2}


def test_the_last_value_of_a_key_counts(files):
    file = files("classification", "mambaout_femto")
    assert read_config(file, ["--config.seed=1", "--config.seed=2"]).seed == 2


def test_an_argument_is_passed_to_the_file(files):
    assert read_config(f"{files('classification', 'mambaout_femto')}:mambaout_tiny").model["name"] == "mambaout_tiny"


def test_the_config_of_a_run_is_an_experiment(tmp_path):
    config = tiny.config(**{"model.ls_init_value": None, "data.crop_scale": (0.5, 1.0)})
    (tmp_path / "config.json").write_text(config.to_json())
    assert read_config(str(tmp_path / "config.json")) == config
    assert read_config(str(tmp_path / "config.json"), ["--config.seed=7"]) == config.replace({"seed": 7})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    return 1 / 0", ", line 2: ZeroDivisionError: "),
        ("def get_config():\n    raise SystemExit('no')", ", line 2: SystemExit: no"),
        ("def get_config():\n    pass", "has type NoneType; expected a ConfigDict"),
        ("config = {}", " has no function get_config"),
        ("def get_config(variant):\n    pass", " lacks its argument 'variant'; "),
        ("def get_config(", " is not a Python file: "),
        ("\0", " is not a Python file: "),
        (
            "import mambaout_jax.run.config as c\ndef get_config():\n    c.default_config().optim.lerning_rate = 1",
            ", line 3: ",
        ),
        ("def get_config():\n    return {'data': {'name': {1, 2}}}", "config.data.name is {1, 2} of type set; "),
        ("def get_config():\n    return {'data': {'name': object}}", "config.data.name is "),
        ("def get_config():\n    return {1: 2}", "config.model.name is unset"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    assert_one_sentence(str(tmp_path / "broken.py"), "--config.seed=0", words)


def test_a_path_that_is_no_experiment_is_one_sentence(tmp_path):
    for name, content in (("damaged.json", b"{"), ("list.json", b"[]"), ("bytes.json", b"\xff")):
        (tmp_path / name).write_bytes(content)
        assert_one_sentence(str(tmp_path / name), "--config.seed=0", name)
    assert_one_sentence(str(tmp_path), "--config.seed=0", "is a directory")
    assert_one_sentence(str(tmp_path / "none.py"), "--config.seed=0", "none.py does not exist")
    assert_one_sentence(f"{tiny.DIGITS}:x", "--config.seed=0", "takes no argument but was given 'x'")
    assert_one_sentence(f"{tiny.DIGITS}:", "--config.seed=0", "takes no argument but was given ''")


@pytest.mark.run
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/digits.py", "--config.optim.learningrate=1"], "did you mean config.optim.learning_rate"),
        (["--config=configs/digits.py", "--config.model.kernel_size=4"], "kernel_size is 4; expected an odd number"),
        (["--config=configs/digits.py", "--config.data.auto_augment=rond"], "rond"),
        (["--config=configs/digits.py", "--confg.seed=1"], "confg"),
        (["--config=configs/digits.py", "extra"], "unrecognized arguments: extra"),
        (["--config=configs/nothing.py"], "configs/nothing.py does not exist"),
        (["--config=nothing:x"], "not an experiment of this package; expected a file, or one of ade20k, coco, digits"),
        (["--mode=evaluate", "--config.seed=1"], "--config.seed=1 requires --config"),
        ([], "--config is missing"),
    ],
)
def test_the_program_refuses_before_anything_is_written(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "datasets"))
    command = [sys.executable, "main.py", f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_page_on_the_config_is_current():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import write_config_tables
    finally:
        sys.path.remove(str(ROOT / "docs"))
    page = (ROOT / "docs" / "config.md").read_text()
    assert write_config_tables.update(page) == page, "run: python docs/write_config_tables.py"
