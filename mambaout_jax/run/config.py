"""The config of a run and its keys.

`parse_config` turns a ConfigDict, or the plain dicts of a config.json, into a `RunConfig` of plain values.
`config_file.py` loads experiments and applies changes from the command line. Only these two modules use ConfigDict.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mambaout_jax.checks import MAX_INTEGER, ConfigKey, find_fault, nearest_names, suggest
from mambaout_jax.models import families, families_with, find_family, option_keys, variant_options
from mambaout_jax.plugins import load as load_plugins
from mambaout_jax.run.errors import RunError
from mambaout_jax.tasks.api import Task, TaskConfig
from mambaout_jax.tasks.registry import DEFAULT, get_task
from mambaout_jax.words import count, listed

# Values of `optim.schedule` with a warm-up of a number of steps.
STEP_SCHEDULES = ("linear", "drops")

# Keys of every run. A task adds its own, and `model` takes every option of the model (`models.option_keys`).
KEYS: Mapping[str, ConfigKey] = {
    "task": ConfigKey(str, None, DEFAULT, "name of the task"),
    "plugins": ConfigKey(
        tuple[str, ...], None, (), "modules of other packages with families or tasks", changeable=True
    ),
    "seed": ConfigKey(int, "0..4294967295", 0, "random seed of initialization, shuffling and augmentation"),
    "resume": ConfigKey(
        str,
        ("same", "any", "never"),
        "same",
        "if the workdir contains a run: resume it if its config is the same, resume it with any config, or refuse it",
        changeable=True,
    ),
    "init_from": ConfigKey(
        str | None,
        None,
        None,
        "initial weights: the workdir of a run, a PyTorch file, a Hugging Face folder or hub id (docs/convert.md); "
        "random if unset",
    ),
    "init_head": ConfigKey(str, ("keep", "new"), "keep", "last layer: from init_from, or randomly initialized"),
    "num_epochs": ConfigKey(int, "1..", 300, "epochs of the run, warm-up and cooldown included"),
    "num_steps": ConfigKey(
        int | None,
        "1..",
        None,
        "steps of the run, in place of num_epochs, with the schedules `linear` and `drops`; the last epoch may be "
        "incomplete",
    ),
    "batch_size": ConfigKey(int, "1..", 1024, "images per optimizer step, over all devices"),
    "microbatch_size": ConfigKey(
        int | None,
        "1..",
        None,
        "largest number of images that a device processes at once; gradients are accumulated over as few equal "
        "microbatches as possible. One microbatch if unset",
    ),
    "eval_batch_size": ConfigKey(int, "1..", 64, "images per evaluation step, over all devices", changeable=True),
    "eval_every_epochs": ConfigKey(
        int, "1..", 1, "epochs between evaluations; each one saves a checkpoint too", changeable=True
    ),
    "save_every_steps": ConfigKey(int | None, "1..", None, "steps between additional checkpoints", changeable=True),
    "log_every_steps": ConfigKey(int, "1..", 50, "steps between logged metrics", changeable=True),
    "metric_writers": ConfigKey(
        tuple[str, ...],
        ("tensorboard", "csv", "wandb"),
        ("tensorboard",),
        "copies of the metrics in metrics.jsonl: for TensorBoard, as CSV files, for Weights & Biases (extra wandb)",
        changeable=True,
    ),
    "mesh.fsdp": ConfigKey(
        int,
        "1..",
        1,
        "number of devices over which parameters, their EMA and the optimizer state are sharded; 1 replicates them",
        changeable=True,
    ),
    "data.name": ConfigKey(str, None, None, "TFDS dataset, as name, name:version or name/config:version"),
    "data.data_dir": ConfigKey(
        str | None, None, None, "folder of prepared datasets; TFDS's default if unset", changeable=True
    ),
    "data.train_split": ConfigKey(str, None, "train", "split for training"),
    "data.validation_split": ConfigKey(str, None, "validation", "split for evaluation"),
    "data.repeated_aug": ConfigKey(
        int,
        "1..",
        1,
        "repeated augmentation: number of augmented copies of each image, next to each other in a batch; an epoch "
        "keeps its number of steps and sees fewer images",
    ),
    "data.num_workers": ConfigKey(
        int, "0..", 0, "worker processes that decode images; 0 decodes in threads", changeable=True
    ),
    "data.on_bad_record": ConfigKey(
        str,
        ("raise", "skip"),
        "raise",
        "raise: an undecodable record ends the run; skip: it is replaced by another one (in evaluation: omitted) and "
        "counted",
    ),
    "model.name": ConfigKey(str, None, None, "a model that `python -m mambaout_jax models` lists"),
    "optim.name": ConfigKey(
        str, ("adamw", "lamb"), "adamw", "optimizer; LAMB also scales the update of each matrix to the matrix's norm"
    ),
    "optim.learning_rate": ConfigKey(
        float,
        "0..",
        1e-3,
        "base learning rate. With a cosine schedule, the value of the cosine at epoch 0: it starts there, not after "
        "the warm-up, so the peak is slightly lower. With `linear` and `drops`, the peak after the warm-up",
    ),
    "optim.warmup_learning_rate": ConfigKey(float, "0..", 1e-6, "learning rate at the start of the warm-up"),
    "optim.min_learning_rate": ConfigKey(float, "0..", 1e-5, "final learning rate; not used by the schedule `drops`"),
    "optim.warmup_epochs": ConfigKey(
        int, "0..", 5, "epochs of linear warm-up, with the schedules `per_step` and `per_epoch`"
    ),
    "optim.cooldown_epochs": ConfigKey(
        int, "0..", 0, "final epochs at the minimum learning rate, with the schedules `per_step` and `per_epoch`"
    ),
    "optim.warmup_steps": ConfigKey(int, "0..", 0, "steps of linear warm-up, with the schedules `linear` and `drops`"),
    "optim.drop_epochs": ConfigKey(
        tuple[int, ...] | None,
        "0..",
        None,
        "epochs after which the learning rate is divided by 10, with the schedule `drops`",
    ),
    "optim.schedule": ConfigKey(
        str,
        ("per_step", "per_epoch", "linear", "drops"),
        "per_step",
        "per_step, per_epoch: a cosine that changes at every step or epoch, whose first warmup_epochs the warm-up "
        "replaces; linear: after warmup_steps, a linear decay to min_learning_rate at the last step; drops "
        "(step decay): after warmup_steps, a constant learning rate, divided by 10 after each epoch in drop_epochs",
    ),
    "optim.weight_decay": ConfigKey(float, "0..", 0.05, "decoupled weight decay, multiplied by the learning rate"),
    "optim.decay_of": ConfigKey(
        str,
        ("matrices", "all_but_norms"),
        "matrices",
        "parameters with weight decay. matrices: those with more than one axis, except those that the model exempts; "
        "all_but_norms: all without `norm` in their name, which includes biases and the batch norms `bn` of UperNet's "
        "heads, as in mmsegmentation",
    ),
    "optim.b1": ConfigKey(float, "0..<1", 0.9, "decay rate of the first moment"),
    "optim.b2": ConfigKey(float, "0..<1", 0.999, "decay rate of the second moment"),
    "optim.eps": ConfigKey(float, "0..", 1e-8, "epsilon, added to the denominator"),
    "optim.clip_grad_norm": ConfigKey(float | None, "0..", None, "maximum global gradient norm; no clipping if unset"),
    "optim.layer_decay": ConfigKey(
        float | None,
        ">0..1",
        None,
        "layer-wise decay of the learning rate, for fine-tuning (BEiT): the rate of a layer is this factor times that "
        "of the next one. The stem is the first layer, each block is a layer, all heads are the last; none if unset",
    ),
    "optim.ema_decay": ConfigKey(
        float | None,
        "0..1",
        None,
        "decay of the exponential moving average (EMA) of the weights; step n, from 0, uses "
        "min(ema_decay, (1 + n) / (10 + n)). No EMA if unset",
    ),
    "profile.start_step": ConfigKey(
        int | None, "0..", None, "first step of a profiler trace; no trace if unset", changeable=True
    ),
    "profile.num_steps": ConfigKey(int, "1..", 5, "number of steps of the trace", changeable=True),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The section `data`, without the keys of a task."""

    name: str | None
    data_dir: str | None
    train_split: str
    validation_split: str
    repeated_aug: int
    num_workers: int
    on_bad_record: str


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The section `optim`."""

    name: str
    learning_rate: float
    warmup_learning_rate: float
    min_learning_rate: float
    warmup_epochs: int
    cooldown_epochs: int
    warmup_steps: int
    drop_epochs: tuple[int, ...] | None
    schedule: str
    weight_decay: float
    decay_of: str
    b1: float
    b2: float
    eps: float
    clip_grad_norm: float | None
    layer_decay: float | None
    ema_decay: float | None


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """The section `profile`."""

    start_step: int | None
    num_steps: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A config as plain values; the meaning of each is in `KEYS`.

    Args:
        task: the class of the task.
        fsdp: `mesh.fsdp`.
        model: the name, and the options that the experiment sets; all others are the variant's.
        task_options: values of the task's own keys, by dotted name.
        values: all keys by dotted name, and those of `model` and `study` that the experiment sets.
    """

    task: type[Task]
    plugins: tuple[str, ...]
    seed: int
    resume: str
    init_from: str | None
    init_head: str
    num_epochs: int
    num_steps: int | None
    batch_size: int
    microbatch_size: int | None
    eval_batch_size: int
    eval_every_epochs: int
    save_every_steps: int | None
    log_every_steps: int
    metric_writers: tuple[str, ...]
    fsdp: int
    data: DataConfig
    model: Mapping[str, Any]
    optim: OptimConfig
    profile: ProfileConfig
    task_options: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def all_values(self) -> dict[str, Any]:
        """Return `values` with all options of the model, including those that the experiment leaves to the variant."""
        name = self.model["name"]
        size = self.model.get("img_size", find_family(name).variants[name].size)
        values = {**_with_prefix("model", variant_options(name)), **self.values}
        return values | {"model.img_size": (size, size) if isinstance(size, int) else size}

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of the run.

        Raises:
            RunError: the warm-up does not end before the last step, or the steps do not fit into int32.
        """
        steps = self.num_epochs * steps_per_epoch if self.num_steps is None else self.num_steps
        if steps > MAX_INTEGER:
            raise RunError(
                f"the length of the run is {count(steps, 'step')}; expected at most {MAX_INTEGER:,}: "
                "decrease config.num_epochs or config.num_steps"
            )
        _check_warmup(self.optim.warmup_steps, steps)
        return steps

    def build_task(self) -> Task:
        """Build the task of the run.

        Raises:
            TaskError: its values do not fit together.
            RunError: it requires a moving average of the weights and there is none.
        """
        task = self.task.from_config(TaskConfig(self.data.name, self.data.data_dir, self.model, self.task_options))
        distillation = task.distillation()
        if distillation and self.optim.ema_decay is None:
            raise RunError(
                f"config.{distillation.key} is {self.values[distillation.key]} but config.optim.ema_decay is unset; "
                "set it, for example with --config.optim.ema_decay=0.9998"
            )
        return task

    def replace(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return the config with other values, by dotted name.

        Raises:
            RunError: a value does not fit.
        """
        return parse_flat({**self.values, **changes}, complete=False)

    def with_model(self, model: Mapping[str, Any]) -> "RunConfig":
        """Return the config of a single run with another model, without the study.

        Raises:
            RunError: a value does not fit.
        """
        others = {name: value for name, value in self.values.items() if not name.startswith(("model.", "study."))}
        return parse_flat({**others, **_with_prefix("model", model)}, complete=False)

    def to_json(self) -> str:
        """Return the config as JSON text; `from_json` reads it."""
        return json.dumps(nest(self.values), indent=2, sort_keys=True) + "\n"


def default_config(task: str = DEFAULT, plugins: Sequence[str] = ()) -> ConfigDict:
    """Build the config with the default of every key; an experiment sets what differs.

    Keys that have no default are None: `data.name` and `model.name`. The section `model` takes every option of the
    model; the other sections are locked.

    Args:
        task: name of the task, whose own keys are included.
        plugins: modules with families or tasks of other packages.

    Raises:
        TaskError, PluginError: the task or plugin does not exist.
    """
    keys = known_keys({"task": task, "plugins": tuple(plugins)})
    values = {name: key.default for name, key in keys.items()} | {"task": task, "plugins": tuple(plugins)}
    config = ConfigDict(nest(values), type_safe=False).lock()
    config.model.unlock()
    return config


def published_recipes() -> dict[str, dict[str, Any]]:
    """Return the published training recipe of each variant that was published with one, as values by dotted key.

    They include the model, the dataset and the evaluation crop of the variant.
    """
    return {
        name: {
            "model.name": name,
            "data.name": recipe.dataset,
            "data.crop_pct": variant.crop_pct,
            **recipe.values,
        }
        for family in families()
        for name, variant in family.variants.items()
        if variant.top1 and (recipe := family.recipe_of(name)) is not None
    }


def known_keys(given: Mapping[str, Any]) -> dict[str, ConfigKey]:
    """Return the keys that a config may have: those of every run, of its task and of its model.

    Args:
        given: values by dotted name; `plugins`, `task` and `model.name` are read.

    Raises:
        RunError: one of these has another type, or the task's keys hide those of every run.
        PluginError, TaskError, ModelError: the plugin, task or model does not exist.
    """
    plugins, name, model = (given.get(key, KEYS[key].default) for key in ("plugins", "task", "model.name"))
    _check("plugins", KEYS["plugins"], plugins)
    _check("task", KEYS["task"], name)
    load_plugins(plugins)
    task = get_task(name)
    if both := KEYS.keys() & task.keys.keys():
        raise RunError(f"task {name!r} redefines keys of every config: {', '.join(sorted(both))}; rename them")
    keys = {**KEYS, **task.keys}
    if model is not None:
        _check("model.name", KEYS["model.name"], model)
        keys |= {f"model.{option}": key for option, key in option_keys(model).items() if option != "num_classes"}
    return keys


def parse_config(config: ConfigDict | Mapping[str, Any], *, complete: bool = True) -> RunConfig:
    """Check a config and turn it into plain values; keys that it lacks have their defaults.

    Args:
        complete: `data.name` has to be set; imported weights may have no dataset.

    Raises:
        RunError: keys are unknown (the nearest known ones are named), or a value has another type or is out of range.
        TaskError, PluginError, ModelError: the task, plugin or model does not exist.
    """
    return parse_flat(flatten_config(config), complete=complete)


def parse_flat(given: Mapping[str, Any], *, complete: bool = True) -> RunConfig:
    """Parse a flat dict with dotted keys, as in `parse_config`."""
    for name, value in given.items():
        if not _is_plain(value):
            kind = type(value).__name__
            raise RunError(
                f"config.{name} is {value!r} of type {kind}; expected a number, a string, True, False or a tuple"
            )
    _check("model.name", KEYS["model.name"], given.get("model.name"))
    keys = known_keys(given)
    for name, value in given.items():
        if name not in keys and not name.startswith("study."):
            raise RunError(_describe_unknown(name, value, keys, given.get("model.name")))
    defaults = {name: key.default for name, key in keys.items() if not name.startswith("model.")}
    values = {**defaults, **given}
    for name, value in values.items():
        if name in keys and (complete or value is not None or name != "data.name"):
            _check(name, keys[name], value)
    _check_together(values)

    def section(kind: type, name: str) -> Any:
        return kind(**{field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(kind)})

    task = get_task(values["task"])
    return RunConfig(
        **{name: values[name] for name in KEYS if "." not in name} | {"task": task},
        fsdp=values["mesh.fsdp"],
        data=section(DataConfig, "data"),
        model={name.removeprefix("model."): value for name, value in values.items() if name.startswith("model.")},
        optim=section(OptimConfig, "optim"),
        profile=section(ProfileConfig, "profile"),
        task_options={name: values[name] for name in task.keys},
        values=values,
    )


def _describe_unknown(name: str, value: Any, keys: Mapping[str, ConfigKey], model: str | None) -> str:
    if name == "model.num_classes":
        return "config.model.num_classes cannot be set; the dataset determines it"
    if inner := [f"config.{key}" for key in keys if key.startswith(f"{name}.")]:
        return f"config.{name} is {value!r}; it is a section with keys such as {', '.join(inner[:3])}"
    near = " or ".join(f"config.{key}" for key in nearest_names(name, keys, limit=3))
    if name.startswith("model.") and model is not None:
        if owners := families_with(name.removeprefix("model.")):
            options = [key for key in option_keys(model) if f"model.{key}" in keys]
            hint = suggest(name.removeprefix("model."), options) or f", which has {', '.join(options)}"
            return f"config.{name} is an option of {listed(owners)}, not of {model}{hint}"
        return f"config.{name} is not an option of {model}; did you mean {near}?"
    return f"config.{name} is not a known key; did you mean {near}?"


def _is_plain(value: Any) -> bool:
    """Return whether a value survives JSON unchanged, except that tuples become lists."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _check(name: str, key: ConfigKey, value: Any) -> None:
    if fault := find_fault(f"config.{name}", key, value):
        raise RunError(fault)


def _check_together(values: Mapping[str, Any]) -> None:
    if values["init_head"] == "new" and values["init_from"] is None:
        raise RunError("config.init_head is 'new' but config.init_from is unset; set it to a workdir or a weights file")
    if values["optim.drop_epochs"] and values["optim.schedule"] != "drops":
        raise RunError(
            f"config.optim.drop_epochs is {values['optim.drop_epochs']} and config.optim.schedule is "
            f"{values['optim.schedule']!r}, which has no drops; add --config.optim.schedule=drops, or unset them"
        )
    if values["optim.schedule"] in STEP_SCHEDULES or values["num_steps"] is not None:
        _check_steps(values)
        return
    if values["optim.warmup_steps"]:
        raise RunError(
            f"config.optim.warmup_steps is {values['optim.warmup_steps']} and config.optim.schedule is "
            f"{values['optim.schedule']!r}, which warms up for whole epochs; add --config.optim.schedule=linear, or "
            "set config.optim.warmup_epochs instead"
        )
    warmup, cooldown, length = (values[key] for key in ("optim.warmup_epochs", "optim.cooldown_epochs", "num_epochs"))
    if warmup + cooldown > length:
        phases = {"warmup": warmup, "cooldown": cooldown}
        shorter = {phase: length // 5 for phase, epochs in phases.items() if epochs > length // 5}
        raise RunError(
            f"config.optim.warmup_epochs {warmup} plus config.optim.cooldown_epochs {cooldown} exceeds "
            f"config.num_epochs {length}; add "
            + " ".join(f"--config.optim.{phase}_epochs={epochs}" for phase, epochs in shorter.items())
        )


def _check_steps(values: Mapping[str, Any]) -> None:
    steps, warmup, schedule = (values[key] for key in ("num_steps", "optim.warmup_steps", "optim.schedule"))
    if schedule not in STEP_SCHEDULES:
        raise RunError(
            f"config.num_steps is {steps} and config.optim.schedule is {schedule!r}, which counts epochs; add "
            "--config.optim.schedule=linear, or unset num_steps"
        )
    if steps is not None:
        _check_warmup(warmup, steps)


def _check_warmup(warmup: int, steps: int) -> None:
    if warmup >= steps:
        raise RunError(
            f"config.optim.warmup_steps is {warmup}; expected less than the number of steps, {steps}: add "
            f"--config.optim.warmup_steps={steps // 5}"
        )


def evaluation_config(
    task: type[Task], model: Mapping[str, Any], dataset: str | None, plugins: Sequence[str] = ()
) -> RunConfig:
    """Build the config of imported weights.

    Args:
        model: the name, and the options that differ from the variant's own.
    """
    given = {"task": task.name, "plugins": tuple(plugins), "data.name": dataset, **_with_prefix("model", model)}
    return parse_flat(given, complete=False)


def _with_prefix(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def flatten_config(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config as a flat dict with dotted keys, and lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
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
    """Parse what `RunConfig.to_json` wrote.

    Raises:
        ValueError: the text is not a config.
        RunError: a key or a value does not fit.
    """
    config = json.loads(text)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError("it is not a config")
    return parse_config(config, complete=False)


def changed_keys(config: RunConfig, other: RunConfig) -> list[str]:
    """Return a phrase for each key that differs and affects what a step computes."""
    ours, theirs, keys = config.all_values, other.all_values, known_keys(config.values)
    return [
        f"config.{name} was {theirs.get(name)!r}, is {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name not in changeable_keys(keys)
    ]


def changeable_keys(keys: Mapping[str, ConfigKey]) -> set[str]:
    """Return the keys that a resumed run may change."""
    return {name for name, key in keys.items() if key.changeable}
