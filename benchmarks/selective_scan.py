"""Measure the selective scan: implementations on CPU, scaling with length, a PyTorch mixer, TPU compiler estimates.

    python benchmarks/selective_scan.py [--only forms|lengths|mixer|tpu] [--rounds N] [--plot PATH] [--json PATH]

The claims, in float32 with 16 states per channel: compared with the associative scan of the whole sequence (b=2,
l=1024, d=384), `auto` is at least 5 times as fast in the forward pass and 4 times for value and gradient, with a
twentieth of the temporary memory. Time and memory grow with the length to a power below 1.1, from 256 to 65,536 steps.
The Mamba block equals the mixer of `transformers`, of which CPUs run the slow path, within 1e-4 and is faster for
forward pass and gradient. Compiled for a TPU v5e (b=8, l=1024, d=384, value and gradient; requires libtpu), `auto`
takes at most a fiftieth of the memory and a tenth of the estimated cycles. Missed claims are printed, and the exit code
is then 1.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from _programs import STATES, draw_scan
from _timing import check, finish, machine, median_ratio, time_interleaved, write_json
from _torch import import_torch

from mambaout_jax.ops import selective_scan

LENGTHS = tuple(2**power for power in range(8, 17))


def main() -> None:
    """Print one table per claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", metavar="PATH", help="file for the plot of time and memory over length")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    results, missed = {}, []
    for part in (args.only,) if args.only else PARTS:
        print(flush=True)
        results[part] = PARTS[part](args, missed)
    write_json(args.json, results)
    finish(missed)


def draw(batch, length, channels):
    """Draw the arguments of a scan."""
    return [jnp.asarray(x, jnp.float32) for x in draw_scan(batch, length, channels)]


def passes(impl):
    """Return the forward pass, and the value and gradient for all arguments."""
    forward = partial(selective_scan, impl=impl)

    def loss(*arguments):
        return (forward(*arguments) * arguments[0]).sum()

    return {"forward": forward, "gradient": jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))}


def temporary(program):
    """Return the temporary memory of a compiled program in MiB."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def measure_forms(args, missed):
    """Time all implementations, interleaved, and compare their memory with that of `auto`."""
    inputs = draw(2, 1024, 384)
    impls = ("auto", "associative", "chunked", "sequential")
    print(f"{'b=2 l=1024 d=384':<18}{'impl':<13}{'ms':>8}{'MiB':>8}{'time / auto':>13}{'memory / auto':>15}")
    rows = []
    for name, claimed in (("forward", 5), ("gradient", 4)):
        programs = {impl: jax.jit(passes(impl)[name]).lower(*inputs).compile() for impl in impls}
        seconds = time_interleaved({impl: partial(program, *inputs) for impl, program in programs.items()}, args.rounds)
        for impl, program in programs.items():
            ratio = median_ratio(seconds[impl], seconds["auto"])
            memory = temporary(program) / temporary(programs["auto"])
            milliseconds = 1e3 * median(seconds[impl])
            print(f"{name:<18}{impl:<13}{milliseconds:8.1f}{temporary(program):8.1f}{ratio:13.1f}{memory:15.1f}")
            rows.append({"pass": name, "impl": impl, "ms": milliseconds, "MiB": temporary(program), "ratio": ratio})
            if impl == "associative":
                check(missed, f"{name} {ratio:.1f} times as fast; {claimed} is claimed", ratio >= claimed)
                check(missed, f"{name} with 1/{memory:.0f} of the memory; 1/20 is claimed", memory >= 20)
    return rows


def measure_lengths(args, missed):
    """Time `auto` on increasingly long sequences, and fit the exponent of the length."""
    print(f"{'b=1 d=64, length':<18}{'forward ms':>11}{'MiB':>8}{'gradient ms':>13}{'MiB':>8}")
    rows = []
    for length in LENGTHS:
        inputs, row = draw(1, length, 64), {"length": length}
        for name, function in passes("auto").items():
            program = jax.jit(function).lower(*inputs).compile()
            row[f"{name} ms"] = 1e3 * median(time_interleaved({"": partial(program, *inputs)}, args.rounds)[""])
            row[f"{name} MiB"] = temporary(program)
        print("{:<18}{:11.2f}{:8.2f}{:13.2f}{:8.2f}".format(*row.values()), flush=True)
        rows.append(row)
    exponents = {
        column: float(np.polyfit(*(np.log([row[key] for row in rows]) for key in ("length", column)), 1)[0])
        for column in list(rows[0])[1:]
    }
    print("power of length   {:11.2f}{:8.2f}{:13.2f}{:8.2f}".format(*exponents.values()))
    for column, exponent in exponents.items():
        check(missed, f"{column} grows as length^{exponent:.2f}; below 1.1 is claimed", exponent < 1.1)
    if args.plot:
        plot(rows, args.plot)
    return {"rows": rows, "exponents": exponents}


def plot(rows, path):
    """Plot time and memory over length, with logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("ms", "MiB"), strict=True):
        for name in ("forward", "gradient"):
            axes.loglog(LENGTHS, [row[f"{name} {unit}"] for row in rows], "o-", base=2, label=name)
        axes.set(xlabel="length", ylabel=unit)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def measure_mixer(args, missed):
    """Compare the Mamba block with the mixer of `transformers` on the same weights."""
    try:
        torch = import_torch()
        import transformers
        from transformers.models.mamba.modeling_mamba import MambaMixer
    except ModuleNotFoundError as error:
        print(f"the mixer is skipped: {error}")
        return None
    from mambaout_jax.models import Functional, MambaBlock
    from mambaout_jax.weights import mamba_block_from_torch

    torch.manual_seed(0)
    torch.set_num_threads(machine()["cores"])
    mixer = MambaMixer(transformers.MambaConfig(hidden_size=192, state_size=STATES), layer_idx=0)
    block = Functional(MambaBlock(192))
    variables = mamba_block_from_torch(block, {key: x.detach().numpy() for key, x in mixer.state_dict().items()})
    x = np.random.default_rng(0).normal(size=(2, 1024, 192)).astype("float32")
    ours, theirs = jax.device_put(x), torch.from_numpy(x)
    forward = jax.jit(block.apply)
    gradient = jax.jit(jax.grad(lambda variables, x: (block.apply(variables, x) ** 2).sum()))

    def torch_forward():
        with torch.inference_mode():
            return mixer(theirs)

    def torch_gradient():
        mixer.zero_grad()
        (mixer(theirs) ** 2).sum().backward()

    expected = torch_forward().numpy()
    difference = np.abs(np.asarray(forward(variables, ours)) - expected).max() / np.abs(expected).max()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"largest difference, relative to the largest output: {difference:.1e}")
    check(missed, f"the block differs by {difference:.1e}; 1e-4 is claimed", difference < 1e-4)
    result = {"difference": float(difference)}
    print(f"{'b=2 l=1024 d=384':<18}{'ours ms':>9}{'theirs ms':>11}{'theirs / ours':>15}")
    for name, calls in {
        "forward": {"ours": lambda: forward(variables, ours), "theirs": torch_forward},
        "gradient": {"ours": lambda: gradient(variables, ours), "theirs": torch_gradient},
    }.items():
        # PyTorch's gradient of a slice has the size of the whole array: with a slice per step, a call takes a minute.
        seconds = time_interleaved(calls, args.rounds if name == "forward" else 1)
        ratio = median_ratio(seconds["theirs"], seconds["ours"])
        print(f"{name:<18}{1e3 * median(seconds['ours']):9.1f}{1e3 * median(seconds['theirs']):11.1f}{ratio:15.1f}")
        check(missed, f"{name} {ratio:.1f} times as fast as PyTorch's", ratio > 1)
        result[name] = {key: median(of) for key, of in seconds.items()} | {"ratio": ratio}
    return result


def measure_tpu(args, missed):
    """Compile for a TPU in a separate process, in which the compiler dumps the schedules of kernels."""
    if importlib.util.find_spec("libtpu") is None:
        print("the TPU is skipped: its compiler requires `pip install libtpu`")
        return None
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "_selective_scan_tpu.py")]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    forms = json.loads(ran.stdout.splitlines()[-1])
    print(f"{'TPU v5e, b=8':<18}{'impl':<13}{'Mcycles':>9}{'of kernels':>12}{'MiB':>9}")
    for impl, form in forms.items():
        print(f"{'':<18}{impl:<13}{form['cycles'] / 1e6:9.2f}{form['kernel_cycles'] / 1e6:12.2f}{form['MiB']:9.1f}")
    cycles, memory = (forms["associative"][key] / forms["auto"][key] for key in ("cycles", "MiB"))
    print(f"associative / auto: cycles {cycles:.1f}, memory {memory:.0f}")
    check(missed, f"1/{cycles:.1f} of the cycles; 1/10 is claimed", cycles >= 10)
    check(missed, f"1/{memory:.0f} of the memory; 1/50 is claimed", memory >= 50)
    return forms


PARTS = {"forms": measure_forms, "lengths": measure_lengths, "mixer": measure_mixer, "tpu": measure_tpu}


if __name__ == "__main__":
    main()
