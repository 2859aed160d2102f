"""Check whether this host, or with --distributed all hosts of a run, can train."""

import argparse

from mambaout_jax.cli.arguments import add_processes, address_of, supervise_if_distributed
from mambaout_jax.errors import print_error, printable
from mambaout_jax.words import count

TAKES_CONFIG = "optional"
EPILOG = """\
With --config, the dataset and the split of its batches over the devices are also checked. For several hosts, run the
command on each of them with --distributed; process 0 prints the results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--workdir", metavar="DIR", help="check that this folder is writable and shared by the hosts")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line per check; return 1 if a check fails, otherwise an exit code of `train`."""
    if args.config_changes and args.config is None:
        return print_error(f"{args.config_changes[0]} changes a config but --config is missing; add --config=FILE")
    if (code := supervise_if_distributed(args)) is not None:
        return code
    from mambaout_jax import distributed
    from mambaout_jax.run.config_file import read_config
    from mambaout_jax.run.doctor import COLLECTIVE_SECONDS, run_checks
    from mambaout_jax.run.errors import report_error
    from mambaout_jax.train.program import check_batches

    config = read_config(args.config, args.config_changes) if args.config else None
    data = (config.data.name, config.data.train_split, config.data.data_dir) if config else None
    try:
        if args.distributed:
            distributed.initialize(*address_of(args), seconds=COLLECTIVE_SECONDS)
        if config:
            check_batches(config, config.build_task(), distributed.make_mesh(config.fsdp).size)
        faults = 0
        for result in run_checks(data, args.workdir):
            faults += len(result.faults)
            if distributed.is_first():
                problems = [f"  problem: {fault}" for fault in result.faults]
                print("\n".join(map(printable, [f"{result.name:<24}{result.value}", *problems])), flush=True)
    except Exception as error:
        return report_error(error, args.workdir or "")
    if distributed.is_first():
        print(f"\n{count(faults, 'problem')} found" if faults else "\nready to train")
    return 1 if faults else 0
