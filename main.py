"""Train or evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`.

Exit codes: 0 finished; 1 the program or the machine failed; 2 invalid input; 3 the loss was not finite; 75 a signal
stopped the run, or another process of it was lost: rerun the same command.
"""

import sys

from mambaout_jax.checks import find_experiment_fault
from mambaout_jax.errors import escape_output, print_error, printable
from mambaout_jax.extras import MissingExtraError, check_installed
from mambaout_jax.process import announced, exit_at_once_on_stop, tolerate_closed_terminal

if __name__ == "__main__":  # before absl is imported, whose logger keeps the stream that it finds
    tolerate_closed_terminal()
    escape_output()
try:
    check_installed("train", "training")
except MissingExtraError as error:
    sys.exit(print_error(error))

from absl import app, flags, logging

from mambaout_jax.machine import raise_open_file_limit

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: FILE.py, FILE.py:ARGUMENT, or config.json of a run. --config.KEY=VALUE changes a key.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an unfinished run in it is resumed.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes; on TPUs they are found automatically.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; required except on a TPU.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; required except on a TPU.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0; required except on a TPU.")


def main(argv: list[str]) -> int:
    """Train or evaluate, and return the exit code."""
    raise_open_file_limit()
    changes = [argument for argument in argv[1:] if _is_change(argument)]
    if fault := _find_fault(argv, changes):
        return print_error(fault)
    from mambaout_jax import supervisor  # after the flags, so that a mistyped one is reported at once

    if DISTRIBUTED.value:
        if not supervisor.is_supervised():
            return supervisor.supervise(sys.argv)
        supervisor.exit_with_supervisor()
    else:  # until a run installs its handlers, there is nothing to save
        exit_at_once_on_stop("rerun the same command to resume")
    with announced("Loading JAX and the dataset readers."):
        from mambaout_jax import distributed
        from mambaout_jax.evaluate.evaluation import evaluate
        from mambaout_jax.evaluate.scores import format_scores
        from mambaout_jax.run.config_file import read_config
        from mambaout_jax.run.errors import report_error
        from mambaout_jax.train.loop import train

    try:
        config = None if CONFIG.value is None else read_config(CONFIG.value, changes)
        if DISTRIBUTED.value:
            distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        results = (train if MODE.value == "train" else evaluate)(config, WORKDIR.value)
        if distributed.is_first():
            print(format_scores(results))
            if MODE.value == "train":
                from mambaout_jax.report.html import write_report  # imports matplotlib

                print(f"report: {printable(str(write_report(WORKDIR.value)))}")
    except Exception as error:
        return report_error(error, WORKDIR.value)
    return 0


def _find_fault(argv: list[str], changes: list[str]) -> str:
    """Return a sentence about flags that do not fit together; empty if they do."""
    if others := [argument for argument in argv[1:] if argument not in changes]:
        return f"{others[0]!r} is not a flag; flags start with --"
    if WORKDIR.value is None:
        return "--workdir is missing; try: python main.py --config=configs/digits.py --workdir=runs/digits"
    if not WORKDIR.value:
        return "--workdir is empty; a folder is expected, for example runs/digits"
    if CONFIG.value is None and MODE.value == "train":
        return "--config is missing; try --config=configs/digits.py"
    if CONFIG.value is None and changes:
        return f"{changes[0]} requires --config, for example --config={WORKDIR.value}/config.json"
    address = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if any(value is not None for value in address) and not DISTRIBUTED.value:
        return "--coordinator, --num_processes and --process_id require --distributed"
    return "" if CONFIG.value is None else find_experiment_fault(CONFIG.value, changes)


def _is_change(argument: str) -> bool:
    return argument.startswith(("--config.", "-config."))


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse all flags but the changes of the config, which depend on its file and are returned with the rest."""
    changes = [argument for argument in argv[1:] if _is_change(argument)]
    others = [argument for argument in argv[1:] if not _is_change(argument)]
    if {"--help", "-help", "-h"} & {*others}:  # absl's own help ends with exit code 1
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        # Warnings only by default: absl's app would show every step of a checkpoint.
        return flags.FLAGS([argv[0], f"--verbosity={logging.WARNING}", *others]) + changes
    except flags.Error as error:
        sys.exit(print_error(" ".join(str(error).split())))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
