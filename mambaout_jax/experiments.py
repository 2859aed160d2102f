"""Experiments on a command line: the file, its argument, and changes of keys; standard library only."""

import os
import re
from collections.abc import Iterable

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
# The folder of experiments: inside the installed package, or next to the package in a checkout.
EXPERIMENTS = next(
    filter(os.path.isdir, (os.path.join(_PACKAGE, "configs"), os.path.join(os.path.dirname(_PACKAGE), "configs"))), ""
)


def split_experiment(file: str) -> tuple[str, str | None]:
    """Split FILE.py:ARGUMENT or NAME:ARGUMENT into the path of the file and the argument; None for no argument.

    A name without dots and slashes is that of a file in `EXPERIMENTS`.
    """
    if named := re.fullmatch(r"([\w-]+)(?::(.*))?", file, re.DOTALL):
        return os.path.join(EXPERIMENTS, f"{named[1]}.py"), named[2]
    parts = re.fullmatch(r"(.+\.py):(.*)", file, re.DOTALL)
    return (file, None) if parts is None else (parts[1], parts[2])


def split_change(change: str) -> tuple[str, str] | None:
    """Split --config.KEY=VALUE into the key and the value; None if it has no value."""
    parts = re.fullmatch(r"--?config\.([^=]+)=(.*)", change, re.DOTALL)
    return None if parts is None else (parts[1], parts[2])


def find_experiment_fault(file: str, changes: Iterable[str] = ()) -> str:
    """Return a sentence about what is wrong with the arguments of an experiment; empty if nothing is.

    Programs call it before they import the packages that can read an experiment, which takes seconds.
    """
    path, _ = split_experiment(file)
    if not os.path.exists(path) and os.path.isdir(file):  # read as the name of an experiment of this package
        path = file
    if os.path.isdir(path):
        return f"--config={path} is a directory; expected a Python file, or the config.json of a run"
    if not os.path.exists(path):
        if os.path.dirname(path) == EXPERIMENTS:
            known = ", ".join(sorted(name[:-3] for name in os.listdir(EXPERIMENTS) if name.endswith(".py")))
            return f"--config={file} is not an experiment of this package; expected a file, or one of {known}"
        return f"--config={path} does not exist; expected an experiment such as configs/digits.py"
    incomplete = next((change for change in changes if split_change(change) is None), None)
    return "" if incomplete is None else f"{incomplete} has no value; expected --config.KEY=VALUE"
