"""Evaluate a run, or pretrained weights in a new workdir."""

import argparse

from mambaout_jax.cli import train

TAKES_CONFIG = train.TAKES_CONFIG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    train.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate with the config of the run, or with the given one, and return the exit code."""
    return train.run_mode(args, is_training=False)
