"""The config of a run: its keys, and the one place where a ConfigDict is read.

`parse_config` turns a ConfigDict, or the plain dicts of a config.json, into a `RunConfig` of plain values. Nothing else
of the package sees a ConfigDict.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mambaout_jax.checks import Key, find_fault, nearest
from mambaout_jax.plugins import load as load_plugins
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import Task, TaskConfig
from mambaout_jax.tasks.registry import DEFAULT, get_task

# Keys of every run. A task adds its own, and `model` has more keys than these: every option of the model's family,
# checked by `create_model`.
KEYS: Mapping[str, Key] = {
    "task": Key(str, None, "what is learned: the name of a task"),
    "plugins": Key(tuple, None, "modules with families or tasks of other packages"),
    "seed": Key(int, "0..4294967295", "of initialization, shuffling and augmentation"),
    "resume": Key(str, ("same", "any", "never"), "what to do if the workdir already holds a run: continue it if its "
                  "config is the same, continue it with any config, or refuse it"),
    "init_from": Key(str, None, "weights that a new run starts from: the workdir of a run, a PyTorch file, a Hugging "
                     "Face folder or hub id (docs/convert.md); random if unset", optional=True),
    "init_head": Key(str, ("keep", "new"), "whether the last layer comes with those weights or is random"),
    "num_epochs": Key(int, "1..", "length of the run, warm-up and cooldown included"),
    "batch_size": Key(int, "1..", "images in an optimizer step, over all devices"),
    "microbatch_size": Key(int, "1..", "most images that a device computes at once: gradients are accumulated over as "
                           "few equal microbatches as that allows; one if unset", optional=True),
    "eval_batch_size": Key(int, "1..", "images in an evaluation step, over all devices"),
    "eval_every_epochs": Key(int, "1..", "epochs between evaluations; each one saves a checkpoint too"),
    "save_every_steps": Key(int, "1..", "steps between further checkpoints", optional=True),
    "log_every_steps": Key(int, "1..", "steps between lines of metrics"),
    "mesh.fsdp": Key(int, "1..", "devices over which weights, their average and the optimizer's state are split; every "
                     "device has all of them at 1"),
    "data.name": Key(str, None, "TFDS dataset, as name, name:version or name/config:version"),
    "data.data_dir": Key(str, None, "where datasets are prepared; TFDS's own folder if unset", optional=True),
    "data.train_split": Key(str, None, "split to train on"),
    "data.validation_split": Key(str, None, "split to evaluate on"),
    "data.num_workers": Key(int, "0..", "processes that decode; 0 decodes in threads"),
    "data.on_bad_record": Key(str, ("raise", "skip"), "what happens with a record that does not decode: it ends the "
                              "run, or it is replaced by another (in evaluation: left out) and counted"),
    "model.name": Key(str, None, "one of `python -m mambaout_jax models`"),
    "optim.learning_rate": Key(float, "0..", "the rate that warm-up leads to and the cosine starts from; the cosine "
                               "begins at epoch 0, so with warm-up the largest rate is slightly lower"),
    "optim.warmup_learning_rate": Key(float, "0..", "where the warm-up starts"),
    "optim.min_learning_rate": Key(float, "0..", "where the cosine ends"),
    "optim.warmup_epochs": Key(int, "0..", "epochs of linear warm-up"),
    "optim.cooldown_epochs": Key(int, "0..", "last epochs, at the smallest learning rate"),
    "optim.schedule": Key(str, ("per_step", "per_epoch"), "whether the learning rate moves at every step or epoch"),
    "optim.weight_decay": Key(float, "0..", "of AdamW, decoupled: multiplied by the learning rate"),
    "optim.b1": Key(float, "0..<1", "AdamW's decay of the first moment"),
    "optim.b2": Key(float, "0..<1", "AdamW's decay of the second moment"),
    "optim.eps": Key(float, "0..", "added to the denominator of AdamW's update"),
    "optim.clip_grad_norm": Key(float, "0..", "largest global norm of a gradient; not clipped if unset", optional=True),
    "optim.ema_decay": Key(float, "0..1", "of the moving average of the parameters; none is kept if unset",
                           optional=True),
    "profile.start_step": Key(int, "0..", "first step of a profiler trace; none is taken if unset", optional=True),
    "profile.num_steps": Key(int, "1..", "steps of the trace"),
}  # fmt: skip

# Keys that do not change what a step computes, so that a resumed run may change them. A task adds its own.
FREE_KEYS = (
    "resume", "plugins", "eval_every_epochs", "eval_batch_size", "save_every_steps", "log_every_steps", "mesh.fsdp",
    "data.data_dir", "data.num_workers", "model.scan_blocks", "model.remat", "profile.start_step", "profile.num_steps",
)  # fmt: skip

# What an evaluation reads besides the task's own keys: all that the config of imported weights has.
EVALUATION: Mapping[str, Any] = {
    "plugins": (),
    "eval_batch_size": 64,
    "mesh.fsdp": 1,
    "data.name": None,
    "data.data_dir": None,
    "data.validation_split": "validation",
    "data.num_workers": 0,
    "data.on_bad_record": "raise",
    "optim.ema_decay": None,
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The section `data`, without the keys of a task."""

    name: str | None
    data_dir: str | None
    train_split: str
    validation_split: str
    num_workers: int
    on_bad_record: str


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The section `optim`."""

    learning_rate: float
    warmup_learning_rate: float
    min_learning_rate: float
    warmup_epochs: int
    cooldown_epochs: int
    schedule: str
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_grad_norm: float | None
    ema_decay: float | None


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """The section `profile`."""

    start_step: int | None
    num_steps: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A config as plain values; the meaning of each is in `KEYS`.

    The config of imported weights, or of a workdir from an earlier version, has None for keys that it lacks.

    Args:
        task: the class of the task.
        fsdp: `mesh.fsdp`.
        model: the section `model`, without the options that are unset.
        task_options: values of the task's own keys, by dotted name.
        values: all keys by dotted name, as they were given.
    """

    task: type[Task]
    plugins: tuple[str, ...]
    seed: int
    resume: str
    init_from: str | None
    init_head: str
    num_epochs: int
    batch_size: int
    microbatch_size: int | None
    eval_batch_size: int
    eval_every_epochs: int
    save_every_steps: int | None
    log_every_steps: int
    fsdp: int
    data: DataConfig
    model: Mapping[str, Any]
    optim: OptimConfig
    profile: ProfileConfig
    task_options: Mapping[str, Any]
    values: Mapping[str, Any]

    def build_task(self) -> Task:
        """Build the task of the run.

        Raises:
            TaskError: its values do not fit together.
        """
        return self.task.from_config(TaskConfig(self.data.name, self.data.data_dir, self.model, self.task_options))

    def replace(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return the config with other values, by dotted name.

        Raises:
            RunError: a value does not fit.
        """
        return parse_config(nest({**self.values, **changes}), complete=False)

    def with_model(self, model: Mapping[str, Any]) -> "RunConfig":
        """Return the config of a single run with another model, without the study.

        Raises:
            RunError: a value does not fit.
        """
        others = {name: value for name, value in self.values.items() if not name.startswith(("model.", "study."))}
        return parse_config(nest({**others, **_with_prefix("model", model)}), complete=False)

    def to_json(self) -> str:
        """Return the config as JSON text; `from_json` reads it."""
        return json.dumps(nest(self.values), indent=2, sort_keys=True) + "\n"


def parse_config(config: ConfigDict | Mapping[str, Any], *, complete: bool = True) -> RunConfig:
    """Check a config and turn it into plain values.

    Args:
        complete: every key has to be there. Otherwise those that are missing or unset are None.

    Raises:
        RunError: keys are unknown (the nearest known one is named) or missing, or a value has another type or is out
            of its range.
        TaskError, PluginError: there is no such task or plugin.
    """
    flat = flatten_config(config)
    for name, value in flat.items():
        if not _is_plain(value):
            kind = type(value).__name__
            raise RunError(
                f"config.{name} is {value!r}, a {kind}; a number, a string, True, False or a tuple is expected"
            )
    for name in ("task", "plugins"):
        if name in flat:
            _check(name, KEYS[name], flat[name])
    load_plugins(flat.get("plugins", ()))
    task = get_task(flat.get("task", DEFAULT))
    if both := KEYS.keys() & task.keys.keys():
        raise RunError(f"task {task.name!r} has keys of its own that every config has: {', '.join(sorted(both))}")
    keys = {**KEYS, **task.keys}
    if "model.num_classes" in flat:
        raise RunError("config.model.num_classes cannot be set; the dataset has the number of classes")
    for name in flat:
        if name not in keys and not name.startswith(("model.", "study.")):
            raise RunError(f"config.{name} is not a known key; did you mean config.{nearest(name, keys)}?")
    if complete and (missing := [name for name in keys if name not in flat]):
        raise RunError(f"the config lacks {', '.join(f'config.{name}' for name in missing)}; configs/digits.py has all")
    for name, key in keys.items():
        if name == "model.name" or (name in flat and (complete or flat[name] is not None)):
            _check(name, key, flat.get(name))
    _check_together(flat)
    values = {name: flat.get(name) for name in keys}

    def section(kind: type, name: str) -> Any:
        return kind(**{field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(kind)})

    model = {name.removeprefix("model."): value for name, value in flat.items() if name.startswith("model.")}
    return RunConfig(
        **{name: values[name] for name in KEYS if "." not in name} | {"task": task},
        fsdp=values["mesh.fsdp"],
        data=section(DataConfig, "data"),
        model={name: value for name, value in model.items() if value is not None},
        optim=section(OptimConfig, "optim"),
        profile=section(ProfileConfig, "profile"),
        task_options={name: values[name] for name in task.keys},
        values=flat,
    )


def _is_plain(value: Any) -> bool:
    """Check that JSON keeps a value as it is, tuples aside."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _check(name: str, key: Key, value: Any) -> None:
    if fault := find_fault(f"config.{name}", key, value):
        raise RunError(fault)


def _check_together(flat: Mapping[str, Any]) -> None:
    if flat.get("init_head") == "new" and flat.get("init_from") is None:
        raise RunError(
            "config.init_head is 'new', a new last layer on given weights, and config.init_from is unset; the workdir "
            "of a run or a file of weights is expected there"
        )
    # None in a config that was read from a workdir, which may lack keys.
    warmup, cooldown = flat.get("optim.warmup_epochs") or 0, flat.get("optim.cooldown_epochs") or 0
    if warmup + cooldown > (flat.get("num_epochs") or math.inf):
        raise RunError(
            f"config.optim.warmup_epochs {warmup} and cooldown_epochs {cooldown} are more than config.num_epochs "
            f"{flat['num_epochs']}; at most as many are expected"
        )


def read_config(file: str, changes: Sequence[str] = ()) -> RunConfig:
    """Load an experiment.

    Args:
        file: whose `get_config` returns it.
        changes: "--config.KEY=VALUE" each.

    Raises:
        RunError: the file cannot be loaded, or a change does not fit.
    """
    values = flags.FlagValues()
    arguments = ["", f"--config={file}", *changes]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        holder.value.items()  # of a file that could not be loaded, any use raises why
    except (AttributeError, KeyError, OSError, SyntaxError, flags.Error) as error:
        raise RunError(explain_flags(error)) from None
    return parse_config(holder.value)


def explain_flags(error: AttributeError | KeyError | OSError | SyntaxError | flags.Error) -> str:
    """Return in one sentence what ml_collections or absl raised about the flags of a config."""
    if "Traceback (most recent call last)" in str(error):
        return f"--config cannot be run: {str(error).strip().splitlines()[-1]}"
    # The text of a KeyError is the repr of its message.
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if isinstance(error, SyntaxError):
        return f"--config is not a Python file: {text}"
    if isinstance(error, OSError):
        return f"--config cannot be loaded: {text.rpartition('Attempted')[2].strip()}"
    text = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)", r"True or False is expected, not \1", text)
    if isinstance(error, flags.Error):
        return text
    key, near = re.search(r"\w+", text), re.search(r'mean "(\w+)"', text)
    return f"the config has no key {key[0]}{f'; did you mean {near[1]}?' if near else ''}"


def evaluation_config(
    task: type[Task], model: Mapping[str, Any], dataset: str | None, plugins: Sequence[str] = ()
) -> RunConfig:
    """Build the config of imported weights.

    Args:
        model: the name, and the options that differ from the variant's own.
    """
    values = {"task": task.name, **EVALUATION, **dict.fromkeys(task.evaluation_keys)}
    values |= {"plugins": tuple(plugins), "data.name": dataset}
    return parse_config(nest({**values, **_with_prefix("model", model)}), complete=False)


def _with_prefix(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def flatten_config(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config as a flat dict with dotted keys, and lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat dict with dotted keys as a dict of sections."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return nested


def from_json(text: str) -> RunConfig:
    """Read what `RunConfig.to_json` wrote, in this version or an earlier one, which may have had fewer keys.

    Raises:
        ValueError: the text is something else.
        RunError: a key or a value does not fit.
    """
    config = json.loads(text)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), dict) for name in ("data", "model", "optim")
    ):
        raise ValueError("it is not a config")
    return parse_config(nest(_with_current_names(flatten_config(config))), complete=False)


# Keys and values of workdirs that were written before they had their current names.
_FORMER_KEYS = {
    "device_batch_size": "microbatch_size",
    "augment.mix_rate": "augment.mixup_prob",
    "augment.switch_rate": "augment.mixup_switch_prob",
    "augment.erase_rate": "augment.random_erasing_prob",
    "data.flip_rate": "data.hflip_prob",
    "data.bad_records": "data.on_bad_record",
}
_FORMER_VALUES = {
    "data.on_bad_record": {"stop": "raise"},
    "model.remat": {False: "none", True: "full", "cheap": "save_matmuls"},
}


def _with_current_names(flat: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"task": DEFAULT, **EVALUATION}
    named = {_FORMER_KEYS.get(name, name): value for name, value in flat.items()}
    for name, values in _FORMER_VALUES.items():
        if isinstance(named.get(name), str | bool):
            named[name] = values.get(named[name], named[name])
    return named | {name: value for name, value in defaults.items() if named.get(name) is None}


def changed_keys(config: RunConfig, other: RunConfig) -> list[str]:
    """Return in words the keys that differ and matter to what a step computes."""
    ours, theirs = config.values, other.values
    free = {*FREE_KEYS, *config.task.free_keys}
    return [
        f"config.{name} was {theirs.get(name)!r}, is {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name not in free
    ]
