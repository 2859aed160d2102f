"""Train with two checkouts of this project, and compare every loss and every parameter, bit for bit.

    python benchmarks/same_numbers.py CHECKOUT_A CHECKOUT_B [--case NAME ...] [--tolerance X] [--keep DIR]

For changes that should leave all numbers as they are. Each case is a run of two epochs of handwritten digits by the
`main.py` of either checkout, in processes of its own. Of metrics.jsonl, loss, gradient norm and learning rate of every
step and the scores of every evaluation are compared; of the last checkpoint, every array of every item. Two numbers of
metrics.jsonl differ by |a - b| / max(|a|, |b|), two arrays by their largest |a - b| over their largest absolute value.
Without --tolerance nothing may differ in a single bit; with it, nothing by more than that. What only one side has, or
has in another shape or dtype, differs infinitely. If anything differs or a run fails, the exit code is 1.

--keep DIR keeps what a run gave, by the commit of a checkout without changes, the case, the versions of the libraries
and the processor: a baseline need not be run again. Of two checkouts of one commit the second is run all the same: it
tells whether a run repeats itself. Cost: 14 minutes of processor time a checkout, nearly all to compile and to start.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

LIMIT_SECONDS = 1800
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "pillow", "opencv-python-headless")
OF_A_STEP = ("loss", "grad_norm", "learning_rate")
NO_ARRAYS = ("metadata", "metrics")  # items of a checkpoint


class Case(NamedTuple):
    """Describe a run: settings, processes, fake devices, and what `config.model` is instead of that of digits."""

    settings: tuple[str, ...] = ()
    processes: int = 1
    devices: int = 1
    model: dict[str, Any] | None = None


# Keys and values by their newest names -> what they are called where docs/config.md does not know the newest.
RENAMED = {
    "microbatch_size": "device_batch_size",
    "save_matmuls": "cheap",
    "augment.mixup_prob": "augment.mix_rate",
    "augment.mixup_switch_prob": "augment.switch_rate",
    "augment.random_erasing_prob": "augment.erase_rate",
    "data.hflip_prob": "data.flip_rate",
}
COMMON = ("num_epochs=2", "eval_every_epochs=1", "log_every_steps=1", "optim.warmup_epochs=1")
SMALL = ("model.depths=(1, 2)", "model.dims=(32, 64)")
DROPPING = ("model.depths=(2, 3)", "model.dims=(16, 32)", "model.drop_path_rate=0.2", "model.drop_rate=0.1")
VIT = {"name": "vit_tiny_patch16_224", "img_size": 32, "in_chans": 1, "patch_size": 8, "embed_dim": 32, "depth": 3,
       "num_heads": 2, "drop_path_rate": 0.1}  # fmt: skip
CASES = {
    "digits-0": Case(),
    "digits-1": Case(("seed=1",)),
    "digits-2": Case(("seed=2",)),
    "processes-2": Case(SMALL, processes=2),
    "devices-8x1": Case((*SMALL, "mesh.fsdp=1"), devices=8),
    "devices-2x4": Case((*SMALL, "mesh.fsdp=4"), devices=8),
    "accumulation": Case((*SMALL, "microbatch_size=16")),
    "remat-full": Case((*DROPPING, "model.remat=full")),
    "remat-matmuls": Case((*DROPPING, "model.remat=save_matmuls")),
    "scan-blocks": Case((*DROPPING, "model.scan_blocks=True")),
    "mamba": Case(("model.name=mamba_femto", "model.depths=(1, 1, 1, 1)", "model.dims=(8, 16, 24, 32)")),
    "vit": Case(model=VIT),
    "mixing": Case((
        *SMALL, "augment.mixup_alpha=0.8", "augment.cutmix_alpha=1.0", "augment.mixup_prob=0.8",
        "augment.mixup_switch_prob=0.5", "augment.random_erasing_prob=0.5", "data.hflip_prob=0.5",
        "data.crop=random_resized", "data.crop_scale=(0.5, 1.0)", "data.crop_ratio=(0.75, 1.33)",
    )),
    "bfloat16": Case((*SMALL, "model.dtype=bfloat16", "optim.clip_grad_norm=1.0", "optim.schedule=per_epoch")),
}  # fmt: skip
CONFIG_FILE = """import runpy
from ml_collections import ConfigDict

def get_config():
    config = runpy.run_path({digits!r})["get_config"]()
    config.model = ConfigDict({model!r})
    return config
"""


class Numbers(NamedTuple):
    """Results of a run: the numbers in metrics.jsonl and the arrays of its last checkpoint."""

    losses: dict[str, float | None]
    leaves: dict[str, np.ndarray]


class FailedError(Exception):
    """A checkout could not run a case."""


def main() -> None:
    """Run each case with both checkouts, one after the other, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkouts", metavar="CHECKOUT", nargs=2)
    parser.add_argument("--case", nargs="+", action="extend", metavar="NAME", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where results are kept (default: nowhere)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    checkouts = [Path(checkout).resolve() for checkout in args.checkouts]
    commits = [commit_of(checkout) for checkout in checkouts]
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    for letter, checkout, commit in zip("AB", checkouts, commits, strict=True):
        if fault := import_fault(checkout):
            parser.error(f"{checkout} {fault}")
        print(f"{letter}: {checkout}, {f'commit {commit[:12]}' if commit else 'with changes, so that nothing is kept'}")
    print(f"\n{'case':<14}{'losses':>8}{'leaves':>8}{'difference':>12}{'A':>8}{'B':>8}", flush=True)
    repeats = commits[0] is not None and commits[0] == commits[1]
    faults, names = 0, list(dict.fromkeys(args.case or CASES))
    with tempfile.TemporaryDirectory(prefix="same_numbers-", ignore_cleanup_errors=True) as folder:
        for name in names:
            try:
                ours, took = numbers_of(checkouts[0], name, Path(folder, "A"), args.keep)
                theirs, took_too = numbers_of(checkouts[1], name, Path(folder, "B"), args.keep, afresh=repeats)
            except FailedError as error:
                print(f"{name:<14}FAILED: {error}", flush=True)
                faults += 1
                continue
            found = compare(ours, theirs)
            beyond = {what: size for what, size in found.items() if size > args.tolerance}
            figures = f"{len(ours.losses):>8}{len(ours.leaves):>8}{max(found.values()):>12.3g}{took:>8}{took_too:>8}"
            print(f"{name:<14}{figures}  {'DIFFERENT' if beyond else 'same'}", flush=True)
            if beyond:
                first, most = next(iter(beyond)), max(beyond, key=beyond.get)
                print(f"    {len(beyond)} differ, first {first} by {beyond[first]:.3g}, most {most}", flush=True)
                faults += 1
    print(f"\n{faults} of {len(names)} cases differ or failed" if faults else "\nthe same numbers")
    sys.exit(1 if faults else 0)


def machine() -> dict[str, Any]:
    """Return what decides how numbers come out: the processor, its cores, Python, the libraries."""
    info = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    model = info.partition("model name")[2].partition("\n")[0].strip("\t :")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
    }


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout; None if it has uncommitted changes or is not the root of a repository."""
    command = ["git", "-C", str(checkout), "status", "--porcelain=v2", "--branch"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # git may be in use there
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.splitlines()
    changed = any(not line.startswith("# ") for line in told) or not (checkout / ".git").exists()
    return None if changed else next((line.split()[-1] for line in told if line.startswith("# branch.oid ")), None)


def import_fault(checkout: Path) -> str | None:
    """Return why a checkout does not import its own package: another checkout's may be installed."""
    ask = [sys.executable, "-c", "import mambaout_jax; print(mambaout_jax.__file__)"]
    told = subprocess.run(ask, cwd=checkout, env=environment_of(checkout), capture_output=True, text=True, check=False)
    inside = told.returncode == 0 and Path(told.stdout.strip()).is_relative_to(checkout)
    return None if inside else f"does not take the package from there: {told.stdout or told.stderr}"


def environment_of(checkout: Path, **more: str) -> dict[str, str]:
    """Return the environment of a checkout's processes, without what would change how JAX computes."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "TFDS_"))}
    return inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(checkout)} | more


def numbers_of(checkout: Path, name: str, folder: Path, keep: Path | None, afresh: bool = False) -> tuple[Numbers, str]:
    """Return what a case gives with a checkout, and how long that took: run it, unless its numbers were kept."""
    commit, settings = commit_of(checkout), settings_of(checkout, CASES[name])
    key = hashlib.sha256(repr((settings, CASES[name], machine())).encode()).hexdigest()[:8]
    arrays = None if keep is None or commit is None else keep.resolve() / f"{commit[:12]}-{name}-{key}.npz"
    about = arrays and arrays.with_suffix(".json")  # written last: it says that both are there
    if about is not None and about.exists() and not afresh:
        with np.load(arrays) as leaves:
            return Numbers(json.loads(about.read_text())["losses"], dict(leaves)), "kept"
    before = time.monotonic()
    numbers = run(checkout, name, folder)
    took = f"{time.monotonic() - before:.0f} s"
    if about is not None and not about.exists() and commit_of(checkout) == commit:  # not changed meanwhile
        about.parent.mkdir(parents=True, exist_ok=True)
        np.savez(arrays, **numbers.leaves)
        told = {"commit": commit, "case": name, "settings": settings, **machine(), "losses": numbers.losses}
        about.write_text(json.dumps(told, indent=1) + "\n")
    return numbers, took


def settings_of(checkout: Path, case: Case) -> list[str]:
    """Return the settings of a case under the names that a checkout has for them."""
    documented, settings = (checkout / "docs" / "config.md").read_text(), [*COMMON, *case.settings]
    for now, before in RENAMED.items():
        if f"`{now}`" not in documented and f'"{now}"' not in documented:
            settings = [setting.replace(now, before) for setting in settings]
    return settings


def run(checkout: Path, name: str, folder: Path) -> Numbers:
    """Run a case with a checkout in processes of their own, and read what they left."""
    case, workdir, config = CASES[name], folder / name, Path("configs", "digits.py")
    folder.mkdir(exist_ok=True)
    if case.model is not None:  # the command line changes keys, but removes none
        digits, config = str(checkout / config), folder / f"{name}.py"
        config.write_text(CONFIG_FILE.format(digits=digits, model=case.model))
    command = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings_of(checkout, case)]
    places = [[]]
    if case.processes > 1:
        with socket.socket() as probe:
            probe.bind(("", 0))
            command += ["--distributed", f"--coordinator=localhost:{probe.getsockname()[1]}"]
        command.append(f"--num_processes={case.processes}")
        places = [[f"--process_id={process}"] for process in range(case.processes)]
    environment = environment_of(checkout, XLA_FLAGS=f"--xla_force_host_platform_device_count={case.devices}")
    environment |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled", "TFDS_DATA_DIR": f"{folder.parent}/datasets"}
    with (folder / f"{name}.stderr").open("w+") as file:
        quiet = {"cwd": checkout, "env": environment, "stdout": subprocess.DEVNULL, "stderr": file}
        codes = wait([subprocess.Popen([*command, *place], **quiet) for place in places])
        file.seek(0)
        if any(codes):
            raise FailedError(f"{checkout} ended with {codes}: {' / '.join(file.read().splitlines()[-3:])}")
    numbers = Numbers(read_losses(workdir / "metrics.jsonl"), read_leaves(workdir / "checkpoints"))
    if not all(numbers):
        raise FailedError(f"{checkout} left {len(numbers.losses)} losses and {len(numbers.leaves)} leaves")
    return numbers


def wait(processes: list[subprocess.Popen]) -> list[int]:
    """Return the exit codes; once one has failed or time is over, the others are killed."""
    ends = time.monotonic() + LIMIT_SECONDS
    try:
        while None in (codes := [each.poll() for each in processes]) and not any(codes) and time.monotonic() < ends:
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes]


def read_losses(path: Path) -> dict[str, float | None]:
    """Return the numbers of a run's metrics by their names, in the order of the steps; None is not finite."""
    losses = {}
    for record in map(json.loads, path.read_text().splitlines()):
        if record["kind"] == "train":
            losses |= {f"step {record['step']} {name}": record[name] for name in OF_A_STEP if name in record}
        elif record["kind"] == "eval":
            scores = ((weights, value) for weights, value in record.items() if isinstance(value, dict))
            losses |= {f"step {record['step']} {of} {name}": value for of, its in scores for name, value in its.items()}
    return losses


def read_leaves(checkpoints: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the last checkpoint by their sorted paths, as they were saved."""
    handler, leaves = ocp.PyTreeCheckpointHandler(), {}
    last = max((step for step in checkpoints.iterdir() if step.name.isdecimal()), key=lambda step: int(step.name))
    for item in last.iterdir():
        if item.is_dir() and item.name not in NO_ARRAYS:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree)
            tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
            for path, leaf in jax.tree.leaves_with_path(tree):
                leaves[f"{item.name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    return dict(sorted(leaves.items()))


def compare(ours: Numbers, theirs: Numbers) -> dict[str, float]:
    """Compare two runs, and return by how much each number and each array differs: 0 for the same bits."""
    return {
        name: difference(one.get(name), other.get(name))
        for one, other in zip(ours, theirs, strict=True)
        for name in one | other
    }


def difference(one: Any, other: Any) -> float:
    """Compare two numbers or arrays, and return the largest difference over the largest absolute value."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.inf
    if one.tobytes() == other.tobytes() or one.dtype == object:
        return 0.0
    one, other, smallest = one.astype(np.float64), other.astype(np.float64), np.finfo(np.float64).tiny
    size = float(np.abs(one - other).max() / max(np.abs(one).max(), np.abs(other).max(), smallest))
    return max(size, smallest) if np.isfinite(size) else np.inf  # -0 differs from 0, though by nothing


if __name__ == "__main__":
    main()
