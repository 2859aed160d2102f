"""Write report.html, the report of a training run, into its workdir."""

import argparse

from mambaout_jax.cli.arguments import LOADING
from mambaout_jax.errors import printable
from mambaout_jax.process import announced


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("workdir", help="folder of a training run, finished or not")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    with announced(LOADING):
        from mambaout_jax.report.html import write_report

    with announced("Drawing the report."):
        page = write_report(args.workdir)
    print(printable(str(page)))
    return 0
