"""Write the tables of docs/config.md from the keys of the program: python docs/write_config_tables.py."""

import typing
from collections.abc import Mapping
from pathlib import Path

from page_tables import write_tables

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models import families
from mambaout_jax.models.options import BLOCKS, COMMON, EXECUTION, PREPROCESSING
from mambaout_jax.models.registry import HEADS
from mambaout_jax.run.config import KEYS
from mambaout_jax.tasks.registry import BUILT_IN

PAGE = Path(__file__).parent / "config.md"
WORDS = {bool: "true or false", int: "integer", float: "number", str: "string"}


def update(page: str) -> str:
    """Return the page with every table between `<!-- table NAME -->` and `<!-- end -->` written again."""
    return write_tables(page, _tables())


def _tables() -> dict[str, str]:
    shared = {**COMMON, **BLOCKS, **PREPROCESSING, **EXECUTION}
    tables = {"run": _table(KEYS)}
    tables |= {task.name: _table(task.keys) for task in BUILT_IN}
    tables["model"] = _model_table(shared)
    for family in families():
        tables[family.name] = _model_table({name: key for name, key in family.options.items() if name not in shared})
    tables |= {head.name: _model_table(head.options) for head in HEADS}
    return tables


def _model_table(options: Mapping[str, ConfigKey]) -> str:
    """Return the table of options of a model; the dataset determines `num_classes`, which cannot be set."""
    return _table({f"model.{name}": key for name, key in options.items() if name != "num_classes"})


def _table(keys: Mapping[str, ConfigKey]) -> str:
    rows = [
        f"| `{name}` | {_kind(key)} | {_values(key)} | {_default(key)} | {key.help}{' (*)' if key.changeable else ''} |"
        for name, key in keys.items()
    ]
    return "\n".join(["| key | type | values | default | meaning |", "|---|---|---|---|---|", *rows]) + "\n"


def _kind(key: ConfigKey) -> str:
    return " or ".join(map(_words, key.kinds)) + (", or None" if key.optional else "")


def _words(kind: object) -> str:
    if typing.get_origin(kind) is not tuple:
        return WORDS[kind]
    item, last = typing.get_args(kind)
    return f"tuple of {WORDS[item]}s" if last is ... else f"pair of {WORDS[item]}s"


def _values(key: ConfigKey) -> str:
    if isinstance(key.accept, tuple):
        return ", ".join(f"`{word}`" for word in key.accept)
    if key.accept in (None, ".."):
        return ""
    low, high = key.accept.split("..")
    lower = f"> {low[1:]}" if low.startswith(">") else f"≥ {low}" if low else ""
    upper = f"< {high[1:]}" if high.startswith("<") else f"≤ {high}" if high else ""
    return ", ".join(filter(None, (lower, upper)))


def _default(key: ConfigKey) -> str:
    if key.default is None:
        return "None" if key.optional else ""
    if isinstance(key.default, str):
        return f"`{key.default}`"
    if isinstance(key.default, tuple):
        items = [f"{item:.4g}" if isinstance(item, float) else repr(item) for item in key.default]
        return f"`({items[0]},)`" if len(items) == 1 else f"`({', '.join(items)})`"
    return f"{key.default:.4g}" if isinstance(key.default, float) else str(key.default)


if __name__ == "__main__":
    PAGE.write_text(update(PAGE.read_text()))
