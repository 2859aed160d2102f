"""Every key of an experiment's config: its type, its range and what it means.

The table is the one place that knows the keys: `check_config` holds a config against it, and a test holds
docs/config.md to it.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from mambaout_jax.run.errors import RunError


class Key(NamedTuple):
    """Describe a key: its type, the values it takes and its meaning.

    Args:
        kind: of a set value.
        accept: a range "low..high" (a bound may be left out), or the tuple of accepted strings; None for any.
        about: what it means, with its unit.
        optional: whether it may be unset (`config_dict.placeholder`).
    """

    kind: type
    accept: str | tuple[str, ...] | None
    about: str
    optional: bool = False


# `model` has more keys than these: every option of the model's class, checked by `create_model`. `study` is a section
# that only studies have and check.
KEYS: Mapping[str, Key] = {
    "seed": Key(int, "0..4294967295", "of initialisation, shuffling and augmentation"),
    "resume": Key(str, ("same", "any", "never"), "what a workdir that holds a run is for: continue it if its config "
                  "is the same, continue it whatever its config was, or refuse it"),
    "init_from": Key(str, None, "weights that a new run starts from: the workdir of a run, a PyTorch file, a Hugging "
                     "Face folder or hub id (docs/convert.md); drawn afresh if unset", optional=True),
    "init_head": Key(str, ("keep", "new"), "whether the classifier comes with those weights or is drawn afresh"),
    "num_epochs": Key(int, "1..", "length of the run, warm-up and cooldown included"),
    "batch_size": Key(int, "1..", "images in an optimizer step, over all devices"),
    "microbatch_size": Key(int, "1..", "most images that a device computes at once: a batch is computed in as few "
                             "equal parts as that allows; in one if unset", optional=True),
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
    "data.eval_sets": Key(str, None, "TFDS datasets, separated by commas, that --mode=evaluate scores as well",
                          optional=True),
    "data.pipeline": Key(str, ("exact", "fast"), "training images by Pillow, pixel for pixel as timm's, or by "
                         "simplejpeg and OpenCV"),
    "data.crop": Key(str, ("resize", "random_resized"), "how a training image comes to the model's size"),
    "data.crop_scale": Key(tuple, "0..1", "smallest and largest area of a random crop, as a share of the image"),
    "data.crop_ratio": Key(tuple, "0..", "smallest and largest width over height of a random crop"),
    "data.hflip_prob": Key(float, "0..1", "probability of a horizontal flip"),
    "data.interpolation": Key(str, ("bilinear", "bicubic", "random"), "filter that resizes training images"),
    "data.auto_augment": Key(str, None, "RandAugment in timm's words, such as rand-m9-mstd0.5-inc1; none if unset",
                             optional=True),
    "data.crop_pct": Key(float, "0.1..1", "share of the resized side that an evaluated crop keeps; the model's if "
                         "unset", optional=True),
    "data.crop_mode": Key(str, ("center", "squash", "border"), "how an evaluated image is cut; the model's if unset",
                          optional=True),
    "data.num_workers": Key(int, "0..", "processes that decode; 0 decodes in threads"),
    "data.on_bad_record": Key(str, ("raise", "skip"), "what a record that does not decode does: ends the run, or is "
                            "replaced by another (in evaluation: left out) and counted"),
    "model.name": Key(str, None, "one of `python -m mambaout_jax models`"),
    "augment.pad": Key(int, "0..", "pixels of zeros around an image before it is cropped to its size at random"),
    "augment.rotate_degrees": Key(float, "0..180", "largest rotation to either side"),
    "augment.mixup_alpha": Key(float, "0..", "of the Beta that mixup draws its share from; 0 for no mixup"),
    "augment.cutmix_alpha": Key(float, "0..", "of the Beta that cutmix draws its share from; 0 for no cutmix"),
    "augment.mixup_prob": Key(float, "0..1", "probability that a group of images is mixed at all"),
    "augment.mixup_switch_prob": Key(float, "0..1", "probability of cutmix where both are on"),
    "augment.mixup_group": Key(int, "1..", "images that share a draw and mix among themselves"),
    "augment.random_erasing_prob": Key(float, "0..1", "probability that a rectangle of an image is replaced by noise"),
    "augment.label_smoothing": Key(float, "0..1", "mass of a target that is spread over all classes"),
    "optim.learning_rate": Key(float, "0..", "peak of the schedule"),
    "optim.warmup_learning_rate": Key(float, "0..", "where the warm-up starts"),
    "optim.min_learning_rate": Key(float, "0..", "where the cosine ends"),
    "optim.warmup_epochs": Key(int, "0..", "epochs of linear warm-up"),
    "optim.cooldown_epochs": Key(int, "0..", "last epochs, at the smallest learning rate"),
    "optim.schedule": Key(str, ("per_step", "per_epoch"), "whether the learning rate moves at every step or epoch"),
    "optim.weight_decay": Key(float, "0..", "of AdamW, decoupled: multiplied by the learning rate"),
    "optim.b1": Key(float, "0..1", "AdamW's decay of the first moment"),
    "optim.b2": Key(float, "0..1", "AdamW's decay of the second moment"),
    "optim.eps": Key(float, "0..", "AdamW's divisor at zero"),
    "optim.clip_grad_norm": Key(float, "0..", "largest global norm of a gradient; not clipped if unset", optional=True),
    "optim.ema_decay": Key(float, "0..1", "of the moving average of the parameters; none is kept if unset",
                           optional=True),
    "profile.start_step": Key(int, "0..", "first step of a profiler trace; none is taken if unset", optional=True),
    "profile.num_steps": Key(int, "1..", "steps of the trace"),
}  # fmt: skip

# Keys that do not change what a step computes, so that a resumed run may set them otherwise.
FREE_TO_CHANGE = (
    "resume", "eval_every_epochs", "eval_batch_size", "save_every_steps", "log_every_steps", "mesh.fsdp",
    "data.data_dir", "data.num_workers", "data.eval_sets", "model.scan_blocks", "model.remat", "profile.start_step",
    "profile.num_steps",
)  # fmt: skip


# What an evaluation reads, `model` aside: all that the config of imported weights has, which were trained elsewhere.
EVALUATION: Mapping[str, Any] = {
    "eval_batch_size": 64,
    "mesh.fsdp": 1,
    "data.name": None,
    "data.data_dir": None,
    "data.validation_split": "validation",
    "data.eval_sets": None,
    "data.crop_pct": None,
    "data.crop_mode": None,
    "data.num_workers": 0,
    "data.on_bad_record": "raise",
    "optim.ema_decay": None,
}


def read_config(file: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Load an experiment.

    Args:
        file: whose `get_config` gives it.
        changes: "--config.KEY=VALUE" each.

    Raises:
        RunError: the file cannot be loaded, or a change does not fit.
    """
    values = flags.FlagValues()
    arguments = ["", f"--config={file}", *changes]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        holder.value.items()  # of a file that could not be loaded, any use tells why
    except (AttributeError, KeyError, OSError, SyntaxError, flags.Error) as error:
        raise RunError(explain_flags(error)) from None
    check_config(holder.value)
    return holder.value


def explain_flags(error: AttributeError | KeyError | OSError | SyntaxError | flags.Error) -> str:
    """Word in one sentence what ml_collections or absl raised over the flags of a config."""
    if "Traceback (most recent call last)" in str(error):
        return f"--config cannot be run: {str(error).strip().splitlines()[-1]}"
    # The text of a KeyError is the repr of its message.
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if isinstance(error, SyntaxError):
        return f"--config is no Python file: {text}"
    if isinstance(error, OSError):
        return f"--config cannot be loaded: {text.rpartition('Attempted')[2].strip()}"
    text = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)", r"True or False is expected, not \1", text)
    if isinstance(error, flags.Error):
        return text
    key, near = re.search(r"\w+", text), re.search(r'mean "(\w+)"', text)  # of the keys that there are
    return f"the config has no key {key[0]}{f'; did you mean {near[1]}?' if near else ''}"


def evaluation_config(model: Mapping[str, Any], dataset: str | None) -> ConfigDict:
    """Build the config of imported weights.

    Args:
        model: the name and what differs from the variant's own options.
    """
    config = ConfigDict({"mesh": {}, "data": {}, "model": model, "optim": {}})
    for name, value in {**EVALUATION, "data.name": dataset}.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    return config


def flatten_config(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give a config as a flat dict with dotted keys and lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def check_config(config: ConfigDict, required: Iterable[str] = KEYS) -> None:
    """Hold a config against the table.

    Args:
        required: keys that have to be there.

    Raises:
        RunError: keys are unknown (the nearest known one is named) or missing, or a value has another type or lies
            out of its range.
    """
    flat = flatten_config(config)
    for name in flat:
        if name not in KEYS and not name.startswith(("model.", "study.")):
            near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.0)[0]
            raise RunError(f"config.{name} is not a known key; did you mean config.{near}?")
    if missing := [name for name in required if name not in flat]:
        raise RunError(f"the config lacks {', '.join(f'config.{name}' for name in missing)}; configs/digits.py has all")
    for name, key in KEYS.items():
        if name in flat:
            _check_value(name, key, flat[name])
    if flat.get("init_head") == "new" and flat.get("init_from") is None:
        raise RunError(
            "config.init_head is 'new', a new classifier on given weights, and config.init_from is unset; the workdir "
            "of a run or a file of weights is expected there"
        )
    warmup, cooldown = flat.get("optim.warmup_epochs", 0), flat.get("optim.cooldown_epochs", 0)
    if warmup + cooldown > flat.get("num_epochs", math.inf):
        raise RunError(
            f"config.optim.warmup_epochs {warmup} and cooldown_epochs {cooldown} are more than config.num_epochs "
            f"{flat['num_epochs']}; at most as many are expected"
        )


def _check_value(name: str, key: Key, value: Any) -> None:
    if value is None:
        if key.optional:
            return
        raise RunError(f"config.{name} is unset; {_expected(key)} is expected")
    number = key.kind is float and isinstance(value, int)
    if (not isinstance(value, key.kind) and not number) or isinstance(value, bool):
        raise RunError(f"config.{name} is {value!r}; {_expected(key)} is expected")
    if isinstance(key.accept, tuple):
        inside = value in key.accept
    elif isinstance(key.accept, str):
        low, high = (float(bound) if bound else None for bound in key.accept.split(".."))
        values = value if isinstance(value, tuple) else (value,)
        # Written so that NaN lies outside.
        inside = all(
            isinstance(v, int | float) and (low is None or v >= low) and (v < math.inf if high is None else v <= high)
            for v in values
        ) and (not isinstance(value, tuple) or (len(value) == 2 and 0 < value[0] <= value[1]))
    else:
        inside = True
    if not inside:
        raise RunError(f"config.{name} is {value!r}; {_expected(key)} is expected")


def _expected(key: Key) -> str:
    kind = {int: "an integer", float: "a number", str: "a string", tuple: "a pair of rising numbers"}[key.kind]
    if isinstance(key.accept, tuple):
        return " or ".join(map(repr, key.accept))
    if key.accept is None:
        return kind
    low, _, high = key.accept.partition("..")
    return f"{kind} of {low} {f'to {high}' if high else 'or more'}"


def to_json(config: ConfigDict) -> str:
    """Write a config as JSON; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Read what `to_json` wrote; lists come back as the tuples that they were.

    Raises:
        ValueError: the text is something else.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    config = json.loads(text)
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), dict) for name in ("data", "model", "optim")
    ):
        raise ValueError("it holds something else")
    return ConfigDict(tuples(_with_todays_names(config)))


# Keys and values of workdirs that were written before they had the names of today.
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


def _with_todays_names(config: dict[str, Any]) -> dict[str, Any]:
    for former, name in _FORMER_KEYS.items():
        section, _, key = former.rpartition(".")
        values = config.get(section, {}) if section else config
        if key in values:
            values[name.rpartition(".")[2]] = values.pop(key)
    for name, todays in _FORMER_VALUES.items():
        section, _, key = name.rpartition(".")
        if config[section].get(key) in todays:
            config[section][key] = todays[config[section][key]]
    return config


def changed_keys(config: ConfigDict, other: ConfigDict) -> list[str]:
    """List in words the keys that differ and matter to what a step computes."""
    ours, theirs = flatten_config(config), flatten_config(other)
    return [
        f"config.{name} was {theirs.get(name)!r}, is {ours.get(name)!r}"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name) and name not in FREE_TO_CHANGE
    ]
