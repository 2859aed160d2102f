"""Families and tasks from other packages, found by entry point or named in a config.

A plugin is a module, or any object that an entry point refers to, with a tuple `FAMILIES` or `TASKS`. This module
imports only `errors` from the package, so that data workers can load plugins without the models.
"""

import functools
import importlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from mambaout_jax.errors import UserError

ENTRY_POINTS = "mambaout_jax.plugins"
ATTRIBUTES = ("FAMILIES", "TASKS")

# Modules loaded by `load`, by name and in order.
_loaded: dict[str, Any] = {}


class PluginError(UserError):
    """An invalid plugin, described in one sentence."""


def load(names: Sequence[str]) -> None:
    """Import plugin modules, each only once.

    Args:
        names: dotted module names, as in `config.plugins`.

    Raises:
        PluginError: a module cannot be imported or is not a plugin.
    """
    for name in names:
        if name not in _loaded:
            try:
                module = importlib.import_module(name)
            except (Exception, SystemExit) as error:  # third-party code may raise anything
                raise PluginError(
                    f"plugin {name!r} cannot be imported ({_in_one_line(error)}); expected the dotted name of a module "
                    "on the Python path"
                ) from error
            if getattr(module, "__file__", None) is None or not any(hasattr(module, given) for given in ATTRIBUTES):
                raise PluginError(f"module {name!r} is not a plugin; expected a file with {' or '.join(ATTRIBUTES)}")
            _loaded[name] = module


def loaded() -> tuple[str, ...]:
    """Return the names of the modules that `load` imported, in order."""
    return tuple(_loaded)


def provided(attribute: str) -> tuple[Any, ...]:
    """Return the items of an attribute of all plugins, without duplicates, entry points first.

    Args:
        attribute: "FAMILIES" or "TASKS".

    Raises:
        PluginError: an entry point cannot be loaded, or the attribute is not a tuple.
    """
    objects = []
    for plugin in (*_entry_points(), *_loaded.values()):
        items = getattr(plugin, attribute, ())
        if not isinstance(items, tuple | list):
            raise PluginError(f"{attribute} of plugin {plugin!r} is {items!r}; expected a tuple")
        objects += items
    return tuple({id(item): item for item in objects}.values())


@functools.cache
def _entry_points() -> tuple[Any, ...]:
    plugins = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            plugins.append(entry.load())
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"the plugin {entry.name!r} ({entry.value}) cannot be loaded ({_in_one_line(error)}); "
                "reinstall or uninstall the package that provides it"
            ) from error
    return tuple(plugins)


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
