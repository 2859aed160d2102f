"""Write report.html, the report of a training run, into its workdir."""

import argparse

from mambaout_jax.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("workdir", help="folder of a training run, finished or not")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from mambaout_jax.report.html import write_report

    print(printable(str(write_report(args.workdir))))
    return 0
