"""Train or evaluate: `python main.py --config=configs/digits.py --workdir=runs/digits`.

The same as `python -m mambaout_jax train`; with --mode=evaluate, as `python -m mambaout_jax evaluate`.
"""

import sys

from mambaout_jax.__main__ import Parser, main

if __name__ == "__main__":
    parser = Parser(prog="python main.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", choices=("train", "evaluate"), default="train")
    known, others = parser.parse_known_args()
    if {"-h", "--help"} & {*others}:
        print(f"python main.py --mode={known.mode} (train or evaluate) runs this command:\n")
    sys.exit(main([known.mode, *others]))
