"""Load an experiment: a Python file or the config.json of a run, and changes from the command line."""

import inspect
import json
import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mambaout_jax.checks import parse_literal, parse_text
from mambaout_jax.errors import reason
from mambaout_jax.experiments import find_experiment_fault, split_change, split_experiment
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.run.config import KEYS, RunConfig, flatten_config, known_keys, parse_flat
from mambaout_jax.run.errors import RunError

# These keys determine which other keys exist.
_STRUCTURE = ("plugins", "task", "model.name")


def read_config(file: str, changes: Sequence[str] = ()) -> RunConfig:
    """Load an experiment.

    Args:
        file: FILE.py, whose `get_config()` returns a ConfigDict; FILE.py:ARGUMENT for `get_config(ARGUMENT)`; or the
            config.json of a run.
        changes: "--config.KEY=VALUE" each; the last value of a key counts.

    Raises:
        RunError: the file cannot be loaded, or a key or value is invalid.
        TaskError, PluginError, ModelError: the task, plugin or model does not exist.
    """
    if fault := find_experiment_fault(file, changes):
        raise RunError(fault)
    given, texts = _load(*split_experiment(file)), dict(filter(None, map(split_change, changes)))
    for name in _STRUCTURE:
        if name in texts:
            given[name] = parse_text(KEYS[name], texts[name])
    keys = known_keys(given)
    # `parse_flat` reports unknown keys; those of `study` have no table.
    changed = {
        name: parse_text(keys[name], text) if name in keys else parse_literal(text) for name, text in texts.items()
    }
    return parse_flat(given | changed)


def _load(path: str, argument: str | None) -> dict[str, Any]:
    if path.endswith(".json"):
        config = _load_json(path)
    else:
        module = _run(path, lambda: runpy.run_path(path))
        if not callable(module.get("get_config")):
            raise RunError(f"--config={path} has no function get_config; expected one that returns a ConfigDict")
        config = _call(path, module["get_config"], argument)
    if not isinstance(config, ConfigDict | Mapping):
        raise RunError(f"the config of --config={path} has type {type(config).__name__}; expected a ConfigDict")
    return flatten_config(config)


def _load_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise_machine_fault(error, path)
        raise RunError(
            f"--config={path} cannot be read ({reason(error)}); expected the config.json of a run"
        ) from error


def _call(path: str, get_config: Callable[..., Any], argument: str | None) -> Any:
    parameters = inspect.signature(get_config).parameters.values()
    if argument is not None and not parameters:
        raise RunError(f"--config={path} takes no argument but was given {argument!r}")
    if argument is None and any(parameter.default is parameter.empty for parameter in parameters):
        name = next(iter(parameters)).name
        raise RunError(f"--config={path} lacks its argument {name!r}; expected --config={path}:{name.upper()}")
    return _run(path, lambda: get_config() if argument is None else get_config(argument))


def _run(path: str, call: Callable[[], Any]) -> Any:
    """Call code of an experiment, which may raise anything."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise_machine_fault(error, path)
        text = " ".join(str(error).split())
        if isinstance(error, SyntaxError) or (isinstance(error, ValueError) and "null bytes" in text):
            raise RunError(f"--config={path} is not a Python file: {text}") from error
        frames = traceback.extract_tb(error.__traceback__)
        if type(error) is ValueError and frames[-1].filename == path:  # the experiment's own words on its argument
            raise RunError(f"--config={path}: {text}") from error
        lines = [frame.lineno for frame in frames if frame.filename == path]
        place = f", line {lines[-1]}" if lines else ""
        raise RunError(f"--config={path}{place}: {type(error).__name__}: {text}") from error
