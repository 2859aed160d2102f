"""Write report.html, the page that shows a run, into its workdir."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("workdir", help="folder of a training run, finished or not")


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from mambaout_jax.report.html import write_report

    print(write_report(args.workdir))
    return 0
