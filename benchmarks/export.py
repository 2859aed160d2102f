"""Time exported ONNX programs in onnxruntime, interleaved with timm's own export of the same model and with JAX.

    python benchmarks/export.py [--models NAME...] [--threads N] [--json PATH]

One image, float32. Ratios are the time of ours divided by the peer's, medians over the rounds: below 1, ours is faster.
Where timm lacks a model, JAX is the only peer. Weights are random. Our logits are first compared with those of JAX.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from _timing import machine, median_ratio, time_interleaved, write_json
from _torch import export_onnx, import_torch, load_onnx

import mambaout_jax as mo
from mambaout_jax.export.onnx_model import save, to_onnx
from mambaout_jax.models import cpu_compiler_options


def main() -> None:
    """Print a table with one row per model and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mambaout_femto"])
    parser.add_argument("--threads", type=int, default=machine()["cores"], help="threads of onnxruntime")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    versions = machine() | {"onnxruntime": onnxruntime.__version__}
    print(*(f"{name}: {value}" for name, value in versions.items()), sep="\n")
    print(f"\n{'model':<20} {'program':<12} {'nodes':>6} {'MB':>7} {'ms':>8} {'ours over it':>13} {'difference':>11}")
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += time_model(name, Path(folder), args.threads, args.rounds)
    write_json(args.json, {"threads": args.threads, "onnxruntime": onnxruntime.__version__, "rows": rows})


def time_model(name, folder, threads, rounds):
    """Export a model, time its programs, and print a row for each."""
    model = mo.create_model(name)
    variables = model.init(jax.random.key(0))
    size = (model.in_chans, *model.input_spec.size)
    images = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)

    def function(images):
        return {"logits": model.apply(variables, jnp.moveaxis(images, 1, -1))}

    files = {"ours": folder / "ours.onnx"}
    image = jax.ShapeDtypeStruct(size, np.float32)
    save(to_onnx(function, image, input_name="images", description=name), files["ours"], {})
    torch = import_torch()
    import timm

    if timm.is_model(name):
        files["timm"] = folder / "timm.onnx"
        export_onnx(timm.create_model(name, exportable=True), files["timm"], torch.from_numpy(images))
    of_jax = jax.jit(function, compiler_options=cpu_compiler_options())
    calls = {program: partial(load_onnx(file, threads), images) for program, file in files.items()}
    calls["jax"] = partial(of_jax, images)
    expected = np.asarray(of_jax(images)["logits"])
    difference = np.abs(calls["ours"]() - expected).max() / np.abs(expected).max()
    seconds = time_interleaved(calls, rounds)
    rows = []
    for program, times in seconds.items():
        ratio = median_ratio(seconds["ours"], times)
        row = {"model": name, "program": program, "seconds": times, "ours_over_it": ratio}
        nodes = megabytes = shown = ""
        if program in files:
            row["nodes"], row["bytes"] = count_nodes(files[program]), files[program].stat().st_size
            nodes, megabytes = str(row["nodes"]), f"{row['bytes'] / 1e6:.1f}"
        if program == "ours":
            row["difference"], shown = float(difference), f"{difference:.1e}"
        rows.append(row)
        middle = 1e3 * median(times)
        print(f"{name:<20} {program:<12} {nodes:>6} {megabytes:>7} {middle:8.1f} {ratio:13.2f} {shown:>11}", flush=True)
    return rows


def count_nodes(path):
    """Count the nodes of a model, with those of the bodies of loops."""

    def count(graph):
        bodies = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
        return len(graph.node) + sum(map(count, bodies))

    return count(onnx.load(path).graph)


if __name__ == "__main__":
    main()
