"""Test whether a dataset needs an SSM: train variants of a model with and without one, and compare them."""

import argparse
import json
import os
import re

from mambaout_jax.cli.arguments import LOADING, integer
from mambaout_jax.errors import printable
from mambaout_jax.process import announced, exit_at_once_on_stop

TAKES_CONFIG = "optional"
EPILOG = """\
The default experiment is configs/study.py:DATASET, or DATASET_TASK with --task; for other datasets, set --config. Rerun
the same command to resume an interrupted study."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of a prepared dataset, such as digits")
    parser.add_argument("--task", metavar="NAME", help="task of the experiment (default: classification)")
    parser.add_argument(
        "--seeds", type=integer(2), default=3, metavar="N", help="number of folds, each with its own seed (default: 3)"
    )
    parser.add_argument("--workdir", metavar="DIR", help="output folder (default: runs/study-DATASET)")
    parser.add_argument("--json", action="store_true", help="print the content of study.json instead of tables")


def run(args: argparse.Namespace) -> int:
    """Run the study and print its tables; the exit codes are those of main.py."""
    handlers = exit_at_once_on_stop("rerun the same command to resume")  # until the study installs its own
    try:
        return _run(args)
    finally:
        handlers.restore()


def _run(args: argparse.Namespace) -> int:
    with announced(LOADING):
        from mambaout_jax.run.config_file import read_config
        from mambaout_jax.run.errors import RunError, report_error
        from mambaout_jax.study.study import find_experiment, run_study
        from mambaout_jax.tasks.registry import DEFAULT

    workdir = args.workdir or f"runs/study-{re.sub('[/:]+', '-', args.dataset)}"
    if args.config and args.task:
        raise RunError("--task chooses an experiment of configs/study.py and --config another one; remove one of them")
    experiment = args.config or find_experiment(args.dataset, args.task or DEFAULT)
    config = read_config(experiment, [*args.config_changes, f"--config.data.name={args.dataset}"])
    try:
        study = run_study(config, workdir, args.seeds)
    except Exception as error:
        return report_error(error, workdir)
    if args.json:
        print(json.dumps(study, indent=2))
    else:
        _print(study)
        print("\npage:", printable(os.path.join(workdir, "study.html")))
    return 0


def _print(study: dict) -> None:
    from mambaout_jax.study.table import columns, comparison_rows

    print(study["answer"])
    for comparison in study["comparisons"]:
        rows = [columns(study), *comparison_rows(study, comparison)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"\n{comparison['title']}. {comparison['verdict']}")
        for first, *others in rows:
            cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            print("  ".join([first.ljust(widths[0]), *cells]).rstrip())
