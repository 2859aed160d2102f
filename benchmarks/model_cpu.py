"""Time MambaOut-Tiny on CPU, interleaved with timm's model in PyTorch, onnxruntime and OpenVINO.

    python benchmarks/model_cpu.py [--threads N] [--json PATH]

16 images of 224 px in float32: the forward pass, and the training step (forward, backward, AdamW). Ratios are the time
of a peer divided by ours, medians over the rounds: above 1, ours is faster. PyTorch runs the model in channels-last
format, eager and with `torch.compile`; the others run its ONNX export, the forward pass alone. A peer that is not
installed is skipped.
"""

import argparse
import importlib.metadata
import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from _programs import LEARNING_RATE, WEIGHT_DECAY, model_passes
from _timing import machine, median_ratio, time_interleaved, write_json
from _torch import export_onnx, import_torch, load_onnx

import mambaout_jax as mo
from mambaout_jax.models import cpu_compiler_options


def main() -> None:
    """Print a table with one row per pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mambaout_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, help="threads of each peer (default: all cores, as in JAX)")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch, args.size, args.size, 3)).astype("float32")
    labels = rng.integers(0, 1000, args.batch)
    ours = model_passes(mo.create_model(args.model), images, labels, cpu_compiler_options())
    threads = args.threads or machine()["cores"]
    peers, versions = timm_passes(args.model, images, labels, threads)
    if peers:
        peers |= runtime_passes(args.model, images, threads, versions)

    print(*(f"{name}: {value}" for name, value in (machine() | versions).items()), sep="\n")
    print(f"\n{args.model}, {args.batch} images of {args.size} px, float32")
    print(f"{'pass':<14} {'program':<14} {'ms':>9} {'img/s':>7} {'over ours':>10}")
    rows = []
    for name in ours:
        seconds = time_interleaved(
            {"ours": ours[name]} | {peer: passes[name] for peer, passes in peers.items() if name in passes}, args.rounds
        )
        ratios = {peer: median_ratio(times, seconds["ours"]) for peer, times in seconds.items()}
        for peer, times in seconds.items():
            middle = median(times)
            print(
                f"{name:<14} {peer:<14} {1e3 * middle:9.1f} {args.batch / middle:7.1f} {ratios[peer]:10.2f}", flush=True
            )
        rows.append({"pass": name, "rounds": seconds, "over_ours": ratios})
    write_json(args.json, {"model": args.model, "batch": args.batch, "size": args.size, **versions, "rows": rows})


def timm_passes(name, images, labels, threads):
    """Build timm's passes, eager and compiled, and return them with versions; empty if timm cannot be imported."""
    try:
        torch = import_torch()
        import timm
        from torch.nn.functional import cross_entropy
    except ImportError as error:
        print(f"timm is skipped: {error}")
        return {}, {}

    torch.set_num_threads(threads)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels)

    def passes(compiled):
        model = timm.create_model(name).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        call = torch.compile(model) if compiled else model

        def forward():
            model.eval()
            with torch.inference_mode():
                call(images)

        def train():
            model.train()
            optimizer.zero_grad()
            cross_entropy(call(images), labels).backward()
            optimizer.step()

        return {"forward": forward, "training step": train}

    versions = {"torch": torch.__version__, "timm": timm.__version__, "threads of peers": threads}
    return {"eager": passes(compiled=False), "torch.compile": passes(compiled=True)}, versions


def runtime_passes(name, images, threads, versions):
    """Return the forward pass of timm's ONNX export in each runtime that is installed, and add their versions."""
    if importlib.util.find_spec("onnx") is None:
        print("onnxruntime and openvino are skipped: onnx is not installed")
        return {}
    import timm
    import torch

    peers, images = {}, np.moveaxis(images, -1, 1).copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(timm.create_model(name, exportable=True), path, torch.from_numpy(images))
        for peer, load in {"onnxruntime": load_onnx, "openvino": load_openvino}.items():
            try:
                peers[peer] = {"forward": partial(load(path, threads), images)}
            except ImportError as error:
                print(f"{peer} is skipped: {error}")
            else:
                versions[peer] = importlib.metadata.version(peer)
    return peers


def load_openvino(path, threads):
    """Return a function of images that runs a model in OpenVINO, in float32."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    program = openvino.Core().compile_model(path, "CPU", options)
    return lambda images: program(images)[0]


if __name__ == "__main__":
    main()
