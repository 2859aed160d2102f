"""Run one of the commands: `python -m mambaout_jax COMMAND`."""

import argparse
import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib import resources

COMMANDS = ("analyze", "bench-data", "convert", "doctor", "models", "plan", "predict", "prepare", "report", "study")
CONFIG_HELP = "the experiment; --config.KEY=VALUE changes a key"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and give the process's exit code.

    Only that command's module is imported, and a command imports what is heavy when it runs: help comes at once.

    Returns:
        0 when done, 1 when the machine falls short or fails in a known way, 2 when something was typed wrong, 130
        after Ctrl-C. Any other failure is raised.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()  # here, where a reader that went away is known, and not at exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0  # the reader, `head` say, has what it wants
    except Exception as error:
        from mambaout_jax.data import WorkerDiedError
        from mambaout_jax.run.errors import is_user_error

        if isinstance(error, WorkerDiedError):
            return _complain(str(error), 1)
        if not is_user_error(error):
            raise
        return _complain(str(error))
    return code


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else None
    if name is not None and name not in COMMANDS and not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        return _complain(f"{name!r} is no command; did you mean {near!r}? Commands are {', '.join(COMMANDS)}")
    parser = argparse.ArgumentParser(prog="python -m mambaout_jax", description="MambaOut in JAX.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    changes: list[str] = []
    for command in COMMANDS:
        module_name = command.replace("-", "_")
        about = _first_line(module_name)
        subparser = commands.add_parser(command, help=about, description=about)
        if command == name:
            module = importlib.import_module(f"mambaout_jax.cli.{module_name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
            if takes := getattr(module, "TAKES_CONFIG", None):
                required = takes == "required"
                subparser.add_argument("--config", metavar="FILE", required=required, help=CONFIG_HELP)
                changes = [word for word in argv if word.startswith("--config.")]
                subparser.set_defaults(config_changes=changes)
    args = parser.parse_args([word for word in argv if word not in changes])
    return args.run(args)


def _first_line(module_name: str) -> str:
    source = resources.files("mambaout_jax.cli").joinpath(f"{module_name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0].replace("%", "%%")


def _complain(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
