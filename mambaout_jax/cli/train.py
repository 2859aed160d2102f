"""Train a model, or resume its training."""

import argparse

from mambaout_jax.cli.arguments import LOADING, add_processes, address_of, supervise_if_distributed
from mambaout_jax.errors import print_error, printable
from mambaout_jax.process import announced, exit_at_once_on_stop

TAKES_CONFIG = "optional"
EPILOG = """\
exit codes: 0 finished; 1 the program or the machine failed; 2 invalid input; 3 the loss was not finite; 75 a signal
stopped the run, or another process of it was lost: rerun the same command"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, which `evaluate` has too."""
    parser.epilog = EPILOG
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Train, write the report, and return the exit code."""
    if args.config is None:
        return print_error("--config is missing; try --config=digits")
    return run_mode(args, is_training=True)


def run_mode(args: argparse.Namespace, *, is_training: bool) -> int:
    """Train or evaluate in this process, or in a supervised one, and return the exit code."""
    if fault := _find_fault(args):
        return print_error(fault)
    if (code := supervise_if_distributed(args)) is not None:
        return code
    if not args.distributed:  # until a run installs its handlers, there is nothing to save
        exit_at_once_on_stop("rerun the same command to resume")
    with announced(LOADING):
        from mambaout_jax import distributed
        from mambaout_jax.evaluate.evaluation import evaluate
        from mambaout_jax.evaluate.scores import format_scores
        from mambaout_jax.run.config_file import read_config
        from mambaout_jax.run.errors import report_error
        from mambaout_jax.train.loop import train

    try:
        config = None if args.config is None else read_config(args.config, args.config_changes)
        if args.distributed:
            distributed.initialize(*address_of(args))
        results = (train if is_training else evaluate)(config, args.workdir)
        if distributed.is_first():
            print(format_scores(results))
            if is_training:
                from mambaout_jax.report.html import write_report  # imports matplotlib

                print(f"report: {printable(str(write_report(args.workdir)))}")
    except Exception as error:
        return report_error(error, args.workdir)
    return 0


def _find_fault(args: argparse.Namespace) -> str:
    """Return a sentence about arguments that do not fit together; empty if they do."""
    if args.workdir is None:
        return "--workdir is missing; expected a folder, for example --workdir=runs/digits"
    if not args.workdir:
        return "--workdir is empty; expected a folder, for example runs/digits"
    if args.config is None and args.config_changes:
        return f"{args.config_changes[0]} requires --config, for example --config={args.workdir}/config.json"
    return ""
