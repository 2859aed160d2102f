"""The entry point of all commands: `python -m mambaout_jax COMMAND`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import mambaout_jax
from mambaout_jax.checks import nearest_names
from mambaout_jax.errors import escape_output, is_user_error, print_error
from mambaout_jax.experiments import find_experiment_fault
from mambaout_jax.extras import check_installed
from mambaout_jax.machine import MachineError, describe_fault, is_exhausted, raise_open_file_limit
from mambaout_jax.process import tolerate_closed_terminal

COMMANDS = (
    "analyze",
    "bench-data",
    "convert",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "models",
    "plan",
    "predict",
    "prepare",
    "report",
    "reproduce",
    "study",
    "train",
)
# These work with the core dependencies alone.
CORE_COMMANDS = ("convert", "models")
CONFIG_HELP = (
    "the experiment: FILE.py or FILE.py:ARGUMENT; a built-in experiment, such as digits or imagenet:mambaout_tiny; "
    "or the config.json of a run. --config.KEY=VALUE changes a key"
)


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong arguments in one sentence, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with code 2."""
        sys.exit(print_error(f"{message}; see {self.prog} --help"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` and return the exit code of the process.

    Commands import heavy packages when they run, so help is fast.

    Returns:
        0 on success, 1 if a check fails or for known failures of the machine, 2 for invalid input, 3 if training
        diverged, 75 if it was stopped: rerun the same command, 130 after Ctrl-C. Any other failure is raised.
    """
    tolerate_closed_terminal()
    escape_output()
    argv = list(sys.argv[1:] if argv is None else argv)
    raise_open_file_limit()
    try:
        code = _run(argv)
        sys.stdout.flush()  # a closed pipe raises here and not at exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0  # the reader, such as `head`, closed the pipe
    except Exception as error:
        if is_user_error(error):
            return print_error(error)
        if isinstance(error, MachineError) or is_exhausted(error):
            return print_error(describe_fault(error), 1)
        raise
    return code


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else None
    if name is not None and name not in COMMANDS and not name.startswith("-"):
        [near] = nearest_names(name, COMMANDS)
        return print_error(f"{name!r} is not a command; did you mean {near!r}? Commands are {', '.join(COMMANDS)}")
    parser = Parser(prog="python -m mambaout_jax", description="MambaOut and other backbones in JAX.")
    parser.add_argument("--version", action="version", version=f"mambaout_jax {mambaout_jax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    changes: list[str] = []
    for command in COMMANDS:
        module = importlib.import_module(f"mambaout_jax.cli.{command.replace('-', '_')}")
        about = module.__doc__.splitlines()[0].replace("%", "%%")
        subparser = commands.add_parser(command, help=about, description=about)
        if command == name:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
            if takes := getattr(module, "TAKES_CONFIG", None):
                required = takes == "required"
                subparser.add_argument("--config", metavar="FILE", required=required, help=CONFIG_HELP)
                changes = [argument for argument in argv if argument.startswith("--config.")]
                subparser.set_defaults(config_changes=changes)
    args, unknown = parser.parse_known_args([argument for argument in argv if argument not in changes])
    if unknown:
        hint = "; a key of the config is set by --config.KEY=VALUE" if hasattr(args, "config") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    config = getattr(args, "config", None)
    if config is not None and (fault := find_experiment_fault(config, changes)):
        return print_error(fault)
    # Checked first, so that the message names the command and not a missing package.
    if name not in CORE_COMMANDS:
        check_installed("train", name)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
