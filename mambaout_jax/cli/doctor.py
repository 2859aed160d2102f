"""Look whether this host, or with --distributed all hosts of a run, can train: one line each, then a verdict."""

import argparse
import sys

TAKES_CONFIG = "optional"
EPILOG = """\
With --config the dataset is looked at too, and whether the devices take equal shares of its batches. On many hosts the
command runs on each of them, with --distributed; process 0 prints."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    parser.add_argument("--workdir", metavar="DIR", help="look whether it can be written, and is shared by the hosts")
    parser.add_argument("--distributed", action="store_true", help="join the same command on other hosts")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where no TPU tells")
    parser.add_argument("--num_processes", type=int, metavar="N", help="how many there are, where no TPU tells")
    parser.add_argument("--process_id", type=int, metavar="I", help="which one this is, where no TPU tells")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 if something is wrong, or main.py's exit codes."""
    from mambaout_jax import supervisor

    place = args.coordinator, args.num_processes, args.process_id
    if args.config_changes and args.config is None:
        return _complain(f"{args.config_changes[0]} changes a config, and none is named; add --config=FILE")
    if any(value is not None for value in place) and not args.distributed:
        return _complain("--coordinator, --num_processes and --process_id want --distributed beside them")
    if args.distributed and not supervisor.is_supervised():
        return supervisor.supervise(["-m", "mambaout_jax", *sys.argv[1:]])
    from mambaout_jax import distributed
    from mambaout_jax.run.config import read_config
    from mambaout_jax.run.doctor import COLLECTIVE_SECONDS, examine
    from mambaout_jax.run.errors import report_error
    from mambaout_jax.train.program import check_batches

    config = read_config(args.config, args.config_changes) if args.config else None
    data = (config.data.name, config.data.train_split, config.data.data_dir) if config else None
    try:
        if args.distributed:
            distributed.initialize(*place, seconds=COLLECTIVE_SECONDS)
        if config:
            check_batches(config, distributed.make_mesh(config.mesh.fsdp).size)
        faults = 0
        for line in examine(data, args.workdir):
            faults += len(line.faults)
            if distributed.is_first():
                print(
                    "\n".join([f"{line.name:<24}{line.value}", *(f"  wrong: {fault}" for fault in line.faults)]),
                    flush=True,
                )
    except Exception as error:
        return report_error(error, args.workdir or "")
    if distributed.is_first():
        print(f"\n{faults} thing{'s are' if faults > 1 else ' is'} wrong" if faults else "\nready to train")
    return 1 if faults else 0


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
