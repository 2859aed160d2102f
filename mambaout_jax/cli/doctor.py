"""Look whether this host, or with --distributed all hosts of a run, can train: one line each, then a verdict."""

import argparse
import sys

TAKES_CONFIG = "optional"
EPILOG = """\
With --config the dataset is looked at too. On many hosts the command runs on each of them, with --distributed; process
0 prints."""


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

    if args.distributed and not supervisor.is_supervised():
        return supervisor.supervise(["-m", "mambaout_jax", *sys.argv[1:]])
    from mambaout_jax import parallel, train
    from mambaout_jax.analysis.doctor import COLLECTIVE_SECONDS, examine

    data = None
    if args.config:
        config = train.read_config(args.config, args.config_changes).data
        data = config.name, config.train_split, config.data_dir
    try:
        if args.distributed:
            parallel.start(args.coordinator, args.num_processes, args.process_id, seconds=COLLECTIVE_SECONDS)
        faults = 0
        for line in examine(data, args.workdir):
            faults += len(line.faults)
            if parallel.is_first():
                print(
                    "\n".join([f"{line.name:<24}{line.value}", *(f"  wrong: {fault}" for fault in line.faults)]),
                    flush=True,
                )
    except Exception as error:
        return train.tell_ending(error, args.workdir or "")
    if parallel.is_first():
        print(f"\n{faults} thing{'s are' if faults > 1 else ' is'} wrong" if faults else "\nready to train")
    return 1 if faults else 0
