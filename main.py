"""Train or evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`.

The same as `python -m mambaout_jax train`; with --mode=evaluate, as `python -m mambaout_jax evaluate`.
"""

import sys

from mambaout_jax.__main__ import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    evaluates = "--mode=evaluate" in arguments
    rest = [argument for argument in arguments if argument not in ("--mode=train", "--mode=evaluate")]
    sys.exit(main(["evaluate" if evaluates else "train", *rest]))
