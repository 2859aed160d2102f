"""Download a dataset and write it as ArrayRecord, the format that training reads."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", help="a TFDS dataset: NAME, NAME/CONFIG or NAME/CONFIG:VERSION, or digits")
    parser.add_argument("--data-dir", help="folder that datasets are prepared in (default: TFDS's own)")


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset and print where it is; a failed download or a full disk gives 1."""
    from mambaout_jax.data import prepare_dataset

    try:
        folder = prepare_dataset(args.name, args.data_dir)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.name} is prepared in {folder}")
    return 0
