"""Train or evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`.

Exit codes: 0 finished; 1 the program or the machine failed; 2 invalid input; 3 the loss was not finite; 75 a signal
stopped the run, or another process of it was lost: rerun the same command.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment; --config.KEY=VALUE changes a key.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes it.", required=True)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one process of several; a TPU pod finds the others.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; required except on a TPU.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; required except on a TPU.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0; required except on a TPU.")


def main(argv: list[str]) -> int:
    """Train or evaluate, and return the exit code."""
    if not WORKDIR.value:
        return _print_error("--workdir is empty; a folder is expected, for example runs/digits", 2)
    if len(argv) > 1:
        return _print_error(f"{argv[1]!r} is not a flag; flags start with --", 2)
    if MODE.value == "train" and CONFIG.value is None:
        return _print_error("--config is missing; try --config=configs/digits.py", 2)
    address = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if any(value is not None for value in address) and not DISTRIBUTED.value:
        return _print_error("--coordinator, --num_processes and --process_id require --distributed", 2)
    from mambaout_jax import supervisor  # after the flags, so that a mistyped one is reported at once

    if DISTRIBUTED.value and not supervisor.is_supervised():
        return supervisor.supervise(sys.argv)
    from mambaout_jax import distributed
    from mambaout_jax.evaluate.evaluation import evaluate
    from mambaout_jax.evaluate.scores import format_scores
    from mambaout_jax.report.html import write_report
    from mambaout_jax.run.config import parse_config
    from mambaout_jax.run.errors import report_error
    from mambaout_jax.train.loop import train

    try:
        if DISTRIBUTED.value:
            distributed.initialize(*address)
        config = None if CONFIG.value is None else parse_config(CONFIG.value)
        results = (train if MODE.value == "train" else evaluate)(config, WORKDIR.value)
        if distributed.is_first():
            print(format_scores(results))
            if MODE.value == "train":
                print(f"report: {write_report(WORKDIR.value)}")
    except Exception as error:
        return report_error(error, WORKDIR.value)
    return 0


def _print_error(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        # Warnings only by default: absl's app would show every step of a checkpoint.
        rest = flags.FLAGS([argv[0], f"--verbosity={logging.WARNING}", *argv[1:]])
        if CONFIG.value is not None:
            CONFIG.value.items()  # of a file that could not be loaded, any use raises why
        return rest
    except (AttributeError, KeyError, OSError, SyntaxError, flags.Error) as error:
        from mambaout_jax.run.config import explain_flags

        sys.exit(_print_error(explain_flags(error), 2))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
