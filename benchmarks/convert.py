"""Measure `convert import`, and compare predictions with those of timm, from file to top-1.

    python benchmarks/convert.py [--count N] [--rounds N] [--only import|agreement] [--json PATH]

The claims: mambaout_base is imported from safetensors to a verified workdir in under 15 s, with a peak memory of less
than 3 times the file size; and timm and `predict` agree on the top-1 of every synthetic JPEG whose two best logits
differ by more than 1e-3, when each of them decodes, crops and classifies the file itself. For comparison, PyTorch loads
the same file and processes one image. Missed claims are printed, and the exit code is then 1.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from _timing import finish, machine, write_json
from _torch import import_torch
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

import mambaout_jax as mo
from mambaout_jax.data import EvalTransform
from mambaout_jax.evaluate.predict import predict_files
from mambaout_jax.ops import normalize_images
from mambaout_jax.run.workdir import load_run

SECONDS, MEMORY, MARGIN = 15.0, 3.0, 1e-3
BATCH = 25

# Run in separate processes, to measure their peak memory separately.
WRITE = """
import sys, jax
import mambaout_jax as mo
from safetensors.numpy import save_file
model = mo.create_model("mambaout_base")
save_file(mo.to_torch(model, model.init(jax.random.key(0))), sys.argv[1])
"""
PEER = """
import sys
sys.path.insert(0, sys.argv[2])
from _torch import import_torch
torch = import_torch()
import timm
from safetensors.torch import load_file
model = timm.create_model("mambaout_base").eval()
model.load_state_dict(load_file(sys.argv[1]), strict=True)
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
"""


def main() -> None:
    """Print both tables, and exit with 1 if a claim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="number of imports")
    parser.add_argument("--only", choices=("import", "agreement"))
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    # Without importing the packages, because child processes start with the peak memory of their parent.
    versions = {name: version(name) for name in ("torch", "timm")}
    print(*(f"{name}: {value}" for name, value in (machine() | versions).items()), sep="\n")
    results: dict[str, Any] = dict(versions)
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "agreement":
            results["import"] = measure_import(Path(folder), args.rounds)
        if args.only != "import":
            results["agreement"] = measure_agreement(Path(folder), args.count)
    write_json(args.json, results)
    missed = [claim for part in ("import", "agreement") for claim in results.get(part, {}).get("missed", [])]
    finish(missed)


def import_timm() -> tuple[Any, Any]:
    """Return timm and torch."""
    torch = import_torch()
    import timm

    return timm, torch


def measure_import(folder: Path, rounds: int) -> dict[str, Any]:
    """Time interleaved runs of both processes, and measure the peak memory of each."""
    file = folder / "base.safetensors"
    run_process("-c", WRITE, str(file))
    size = file.stat().st_size
    measured: dict[str, list[tuple[float, int]]] = {"convert import": [], "PyTorch": []}
    for index in range(rounds):
        command = ("-m", "mambaout_jax", "convert", "import", str(file), "--out", str(folder / f"run{index}"))
        measured["convert import"].append(run_process(*command))
        measured["PyTorch"].append(run_process("-c", PEER, str(file), str(Path(__file__).parent)))
    print(f"\nmambaout_base.safetensors, {size / 2**20:.0f} MiB, medians of {rounds}")
    print(f"{'process':<16} {'s':>6} {'peak MiB':>9} {'over the file':>14}")
    rows = {}
    for name, figures in measured.items():
        seconds, peak = median(s for s, _ in figures), median(p for _, p in figures)
        rows[name] = {"seconds": seconds, "peak_bytes": peak, "over_file": peak / size, "rounds": figures}
        print(f"{name:<16} {seconds:6.1f} {peak / 2**20:9.0f} {peak / size:14.2f}")
    ours = rows["convert import"]
    missed = [f"import took {ours['seconds']:.1f} s, not under {SECONDS:g}"] * (ours["seconds"] >= SECONDS)
    missed += [f"import took {ours['over_file']:.2f} times the file, not under {MEMORY:g}"] * (
        ours["over_file"] >= MEMORY
    )
    return {"file_bytes": size, "processes": rows, "missed": missed}


def run_process(*arguments: str) -> tuple[float, int]:
    """Run Python in a subprocess, and return its seconds and its peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    # With subprocess.run, the peaks of several children cannot be separated.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)[:80]} failed with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_agreement(folder: Path, count: int) -> dict[str, Any]:
    """Classify the same files with timm and with this package."""
    files = [str(folder / f"{index:04}.jpg") for index in range(count)]
    for index, file in enumerate(files):
        Path(file).write_bytes(make_jpeg(index))
    weights, workdir = folder / "femto.safetensors", folder / "femto"
    write_spread_weights(weights, files[: min(count, 64)])
    run_process("-m", "mambaout_jax", "convert", "import", str(weights), "--out", str(workdir))
    with jax.default_matmul_precision("highest"):
        ours, ours_top = our_logits(workdir, files)
    theirs = timm_logits(weights, files)

    top = theirs.argmax(-1)
    best = np.sort(theirs, -1)
    clear = best[:, -1] - best[:, -2] > MARGIN
    same = ours_top == top
    figures = {
        "images": count,
        "classes that occur": len(set(top.tolist())),
        "same top-1": int(same.sum()),
        "two best within 1e-3": int((~clear).sum()),
        "same top-1 of those": int(same[~clear].sum()),
        "largest logit": float(np.abs(theirs).max()),
        "largest difference": float(np.abs(ours - theirs).max()),
    }
    print("\nmambaout_femto with random weights, from JPEG to top-1")
    print(*(f"{name:<22} {value:>10.4g}" for name, value in figures.items()), sep="\n")
    wrong = int((clear & ~same).sum())
    return {**figures, "missed": [f"{wrong} images with clearly separated logits have another top-1"] * bool(wrong)}


def make_jpeg(seed: int) -> bytes:
    """Draw smooth colors, shapes and noise in a JPEG with sides of 60 to 900 px; every tenth image is gray."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in np.exp(rng.uniform(np.log(60), np.log(900), 2)))
    cells = rng.integers(0, 256, (*rng.integers(2, 14, 2), 3), np.uint8)
    photo = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    for _ in range(int(rng.integers(0, 8))):
        (left, right), (top, bottom) = (sorted(rng.integers(0, side, 2).tolist()) for side in (width, height))
        shape = (draw.ellipse, draw.rectangle)[rng.integers(2)]
        shape((left, top, right, bottom), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, rng.uniform(0, 25), (height, width, 1))
    photo = Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    photo = photo.convert("L") if seed % 10 == 0 else photo
    photo.save(file, "JPEG", quality=int(rng.integers(50, 98)), subsampling=int(rng.integers(3)))
    return file.getvalue()


def write_spread_weights(path: Path, files: Sequence[str]) -> None:
    """Write random weights whose logits have a spread of several units and whose top-1 varies between images."""
    model = mo.create_model("mambaout_femto")
    leaves, treedef = jax.tree.flatten(model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    perturbed = [leaf + (0.05 if leaf.ndim > 1 else 0.2) * rng.normal(size=leaf.shape).astype("f4") for leaf in leaves]
    variables = jax.tree.unflatten(treedef, perturbed)
    logits = logits_of(model, build_eval_transform(model), variables, files)
    head = variables["params"]["head"]["fc"]
    # Subtract the mean over images and scale to a standard deviation of 3.
    scale = 3 / logits.std(0).mean()
    head["weight"] = head["weight"] * scale
    head["bias"] = (head["bias"] - logits.mean(0)) * scale
    save_file(mo.to_torch(model, variables), path)


def build_eval_transform(model):
    """Build the evaluation transform of `predict` for a model without a run."""
    spec = model.input_spec
    return EvalTransform(spec.size, 3, spec.crop_pct, spec.crop_mode, spec.interpolation, exif_orientation=True)


def logits_of(model, transform, variables, files):
    """Compute our logits for image files."""
    spec = model.input_spec
    apply = jax.jit(lambda variables, images: model.apply(variables, normalize_images(images, spec.mean, spec.std)))
    logits = []
    for start in range(0, len(files), BATCH):
        batch = np.zeros((BATCH, *spec.size, 3), np.uint8)
        for row, file in enumerate(files[start : start + BATCH]):
            batch[row] = transform(Path(file).read_bytes())
        logits.append(np.asarray(apply(variables, batch)))
    return np.concatenate(logits)[: len(files)]


def our_logits(workdir, files):
    """Return the logits of the imported workdir, and the top-1 classes of `predict`."""
    run = load_run(workdir)
    top = [answer.prediction.to_json(1)[0]["index"] for answer in predict_files(run, files)]
    return logits_of(run.model, build_eval_transform(run.model), run.variables, files), np.asarray(top)


def timm_logits(weights, files):
    """Compute timm's logits for image files, with timm's preprocessing."""
    timm, torch = import_timm()
    model = timm.create_model("mambaout_femto").eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in load_file(weights).items()}, strict=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(files), BATCH):
            images = [transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
            logits.append(model(torch.stack(images)).numpy())
    return np.concatenate(logits)


if __name__ == "__main__":
    main()
