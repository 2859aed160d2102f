"""Time the implementations of the depthwise convolution on the four feature maps of MambaOut-Tiny.

    python benchmarks/depthwise.py [--json PATH]

The claim: on CPU, `auto` is at least 15 times as fast as XLA's grouped convolution in the forward pass, and 6 times in
forward and backward pass together. Missed claims are printed, and the exit code is then 1.
"""

import argparse
from statistics import median

import jax
import numpy as np
from _timing import check, finish, machine, median_ratio, time_interleaved, write_json

from mambaout_jax.ops import depthwise_conv2d

MAPS = ((56, 96), (28, 192), (14, 384), (7, 576))
KERNEL = 7
# Least ratio of the times, by pass.
CLAIMS = {"forward": 15, "forward, backward": 6}


def main() -> None:
    """Print a table with one row per feature map and pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"\n{'map':>12}  {'pass':<18} {'lax ms':>8} {'auto ms':>8} {'auto GFLOP/s':>13} {'lax / auto':>10}")
    rows = []
    for side, channels in MAPS:
        for name, calls in passes(args.batch, side, channels).items():
            seconds = time_interleaved(calls, args.rounds)
            ratio = median_ratio(seconds["lax"], seconds["auto"])
            lax, auto = median(seconds["lax"]), median(seconds["auto"])
            # The backward pass computes two sums of the size of the forward pass.
            flops = 2 * KERNEL**2 * args.batch * side**2 * channels * (1 if name == "forward" else 3)
            shape = f"{side}x{side}x{channels}"
            print(
                f"{shape:>12}  {name:<18} {1e3 * lax:8.1f} {1e3 * auto:8.2f} {flops / auto / 1e9:13.1f} {ratio:10.1f}",
                flush=True,
            )
            rows.append({"map": shape, "pass": name, "lax_s": lax, "auto_s": auto, "lax_over_auto": ratio})
    missed: list[str] = []
    for name, claimed in CLAIMS.items():
        of_pass = [row for row in rows if row["pass"] == name]
        ratio = sum(row["lax_s"] for row in of_pass) / sum(row["auto_s"] for row in of_pass)
        print(f"{'all four':>12}  {name:<18} {'':31} {ratio:10.1f}")
        check(missed, f"{name}: {ratio:.1f} times as fast; {claimed} is claimed", ratio >= claimed)
    write_json(args.json, {"batch": args.batch, "rows": rows})
    finish(missed)


def passes(batch, side, channels):
    """Build the calls to time, by pass and implementation."""
    rng = np.random.default_rng(0)
    x, dy = (jax.device_put(rng.normal(size=(batch, side, side, channels)).astype("float32")) for _ in range(2))
    kernel = jax.device_put(rng.normal(size=(KERNEL, KERNEL, 1, channels)).astype("float32"))

    def forward(impl):
        op = jax.jit(lambda x, kernel: depthwise_conv2d(x, kernel, impl=impl))
        return lambda: op(x, kernel)

    def forward_backward(impl):
        def run(x, kernel, dy):
            y, vjp = jax.vjp(lambda x, kernel: depthwise_conv2d(x, kernel, impl=impl), x, kernel)
            return y, vjp(dy)

        op = jax.jit(run)
        return lambda: op(x, kernel, dy)

    return {
        "forward": {impl: forward(impl) for impl in ("lax", "auto")},
        "forward, backward": {impl: forward_backward(impl) for impl in ("lax", "auto")},
    }


if __name__ == "__main__":
    main()
