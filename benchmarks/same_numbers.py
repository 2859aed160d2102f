"""Train with two checkouts of this project, and compare every loss and every parameter, bit for bit.

    python benchmarks/same_numbers.py CHECKOUT_A CHECKOUT_B [--case NAME ...] [--tolerance X] [--keep DIR]

For changes that must not change any number. Each case trains two epochs of handwritten digits with the `main.py` of
each checkout, in separate processes. From metrics.jsonl, it compares the loss, gradient norm and learning rate of every
step and the scores of every evaluation; from the last checkpoint, every array of every item. The difference of two
numbers is |a - b| / max(|a|, |b|), that of two arrays the largest |a - b| over their largest absolute value. Without
--tolerance, all bits must be equal; with it, no difference may exceed it. Entries of only one side, or with different
shapes or dtypes, count as infinitely different. The exit code is 1 if anything differs or a run fails.

--keep DIR caches the results of checkouts without uncommitted changes, by commit, case, library versions and processor,
so that a baseline is run only once. If both checkouts have the same commit, the second is always run, to test whether
runs are reproducible. Cost: 14 minutes of CPU time per checkout, mostly for compilation and startup.
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
STEP_METRICS = ("loss", "grad_norm", "learning_rate")
NO_ARRAYS = ("metadata", "metrics")  # checkpoint items without arrays


class Case(NamedTuple):
    """A run: settings, processes, simulated devices, and a `config.model` that replaces that of digits."""

    settings: tuple[str, ...] = ()
    processes: int = 1
    devices: int = 1
    model: dict[str, Any] | None = None


# Current names of keys and values -> former names, used if docs/config.md of a checkout lacks the current one.
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
    """The results of a run: the numbers in metrics.jsonl and the arrays of the last checkpoint."""

    losses: dict[str, float | None]
    leaves: dict[str, np.ndarray]


class FailedError(Exception):
    """A case that a checkout could not run."""


def main() -> None:
    """Run each case with both checkouts, one after the other, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkouts", metavar="CHECKOUT", nargs=2)
    parser.add_argument("--case", nargs="+", action="extend", metavar="NAME", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder to cache results in (default: no cache)")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    checkouts = [Path(checkout).resolve() for checkout in args.checkouts]
    commits = [commit_of(checkout) for checkout in checkouts]
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    for letter, checkout, commit in zip("AB", checkouts, commits, strict=True):
        if fault := import_fault(checkout):
            parser.error(f"{checkout} {fault}")
        print(f"{letter}: {checkout}, {f'commit {commit[:12]}' if commit else 'uncommitted changes, not cached'}")
    print(f"\n{'case':<14}{'losses':>8}{'leaves':>8}{'difference':>12}{'A':>8}{'B':>8}", flush=True)
    repeats = commits[0] is not None and commits[0] == commits[1]
    faults, names = 0, list(dict.fromkeys(args.case or CASES))
    with tempfile.TemporaryDirectory(prefix="same_numbers-", ignore_cleanup_errors=True) as folder:
        for name in names:
            try:
                ours, took = numbers_of(checkouts[0], name, Path(folder, "A"), args.keep)
                theirs, took_too = numbers_of(checkouts[1], name, Path(folder, "B"), args.keep, rerun=repeats)
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
    print(f"\n{faults} of {len(names)} cases differ or failed" if faults else "\nall numbers are equal")
    sys.exit(1 if faults else 0)


def machine() -> dict[str, Any]:
    """Return everything that affects the numbers: processor, number of cores, Python, libraries."""
    info = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    model = info.partition("model name")[2].partition("\n")[0].strip("\t :")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
    }


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, or None if it has uncommitted changes or is not the root of a repository."""
    command = ["git", "-C", str(checkout), "status", "--porcelain=v2", "--branch"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # another git process may be running
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.splitlines()
    changed = any(not line.startswith("# ") for line in output) or not (checkout / ".git").exists()
    return None if changed else next((line.split()[-1] for line in output if line.startswith("# branch.oid ")), None)


def import_fault(checkout: Path) -> str | None:
    """Return why a checkout does not import its own package but, for example, an installed one; None if it does."""
    ask = [sys.executable, "-c", "import mambaout_jax; print(mambaout_jax.__file__)"]
    done = subprocess.run(ask, cwd=checkout, env=environment_of(checkout), capture_output=True, text=True, check=False)
    inside = done.returncode == 0 and Path(done.stdout.strip()).is_relative_to(checkout)
    return None if inside else f"does not import its own package: {done.stdout or done.stderr}"


def environment_of(checkout: Path, **more: str) -> dict[str, str]:
    """Return the environment for processes of a checkout, without variables that affect JAX's computations."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "TFDS_"))}
    return inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(checkout)} | more


def numbers_of(checkout: Path, name: str, folder: Path, keep: Path | None, rerun: bool = False) -> tuple[Numbers, str]:
    """Return the numbers of a case with a checkout, and the time of the run or "cached"."""
    commit, settings = commit_of(checkout), settings_of(checkout, CASES[name])
    key = hashlib.sha256(repr((settings, CASES[name], machine())).encode()).hexdigest()[:8]
    arrays = None if keep is None or commit is None else keep.resolve() / f"{commit[:12]}-{name}-{key}.npz"
    description = arrays and arrays.with_suffix(".json")  # written last, to mark both files as complete
    if description is not None and description.exists() and not rerun:
        with np.load(arrays) as leaves:
            return Numbers(json.loads(description.read_text())["losses"], dict(leaves)), "cached"
    before = time.monotonic()
    numbers = run(checkout, name, folder)
    took = f"{time.monotonic() - before:.0f} s"
    if description is not None and not description.exists() and commit_of(checkout) == commit:  # still unchanged
        description.parent.mkdir(parents=True, exist_ok=True)
        np.savez(arrays, **numbers.leaves)
        content = {"commit": commit, "case": name, "settings": settings, **machine(), "losses": numbers.losses}
        description.write_text(json.dumps(content, indent=1) + "\n")
    return numbers, took


def settings_of(checkout: Path, case: Case) -> list[str]:
    """Return the settings of a case under the names used by a checkout."""
    documented, settings = (checkout / "docs" / "config.md").read_text(), [*COMMON, *case.settings]
    for now, before in RENAMED.items():
        if f"`{now}`" not in documented and f'"{now}"' not in documented:
            settings = [setting.replace(now, before) for setting in settings]
    return settings


def run(checkout: Path, name: str, folder: Path) -> Numbers:
    """Run a case with a checkout in separate processes, and read the results."""
    case, workdir, config = CASES[name], folder / name, Path("configs", "digits.py")
    folder.mkdir(exist_ok=True)
    if case.model is not None:  # the command line can change keys, but not remove them
        digits, config = str(checkout / config), folder / f"{name}.py"
        config.write_text(CONFIG_FILE.format(digits=digits, model=case.model))
    command = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings_of(checkout, case)]
    process_flags = [[]]
    if case.processes > 1:
        with socket.socket() as probe:
            probe.bind(("", 0))
            command += ["--distributed", f"--coordinator=localhost:{probe.getsockname()[1]}"]
        command.append(f"--num-processes={case.processes}")
        process_flags = [[f"--process-id={process}"] for process in range(case.processes)]
    environment = environment_of(checkout, XLA_FLAGS=f"--xla_force_host_platform_device_count={case.devices}")
    environment |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled", "TFDS_DATA_DIR": f"{folder.parent}/datasets"}
    with (folder / f"{name}.stderr").open("w+") as file:
        quiet = {"cwd": checkout, "env": environment, "stdout": subprocess.DEVNULL, "stderr": file}
        codes = wait([subprocess.Popen([*command, *flags], **quiet) for flags in process_flags])
        file.seek(0)
        if any(codes):
            raise FailedError(f"{checkout} exited with {codes}: {' / '.join(file.read().splitlines()[-3:])}")
    numbers = Numbers(read_losses(workdir / "metrics.jsonl"), read_leaves(workdir / "checkpoints"))
    if not all(numbers):
        raise FailedError(f"{checkout} wrote {len(numbers.losses)} losses and {len(numbers.leaves)} leaves")
    return numbers


def wait(processes: list[subprocess.Popen]) -> list[int]:
    """Return the exit codes; once a process has failed or time is up, kill the others."""
    ends = time.monotonic() + LIMIT_SECONDS
    try:
        while None in (codes := [each.poll() for each in processes]) and not any(codes) and time.monotonic() < ends:
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes]


def read_losses(path: Path) -> dict[str, float | None]:
    """Return the numbers in metrics.jsonl by name, in the order of the steps; None if not finite."""
    losses = {}
    for record in map(json.loads, path.read_text().splitlines()):
        if record["kind"] == "train":
            losses |= {f"step {record['step']} {name}": record[name] for name in STEP_METRICS if name in record}
        elif record["kind"] == "eval":
            scores = ((weights, value) for weights, value in record.items() if isinstance(value, dict))
            losses |= {f"step {record['step']} {of} {name}": value for of, its in scores for name, value in its.items()}
    return losses


def read_leaves(checkpoints: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the last checkpoint as saved, sorted by path."""
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
    """Compare two runs, and return the difference of each number and each array: 0 for equal bits."""
    return {
        name: difference(one.get(name), other.get(name))
        for one, other in zip(ours, theirs, strict=True)
        for name in one | other
    }


def difference(one: Any, other: Any) -> float:
    """Compute the largest difference of two numbers or arrays over the largest absolute value."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.inf
    if one.tobytes() == other.tobytes() or one.dtype == object:
        return 0.0
    one, other, smallest = one.astype(np.float64), other.astype(np.float64), np.finfo(np.float64).tiny
    size = float(np.abs(one - other).max() / max(np.abs(one).max(), np.abs(other).max(), smallest))
    return max(size, smallest) if np.isfinite(size) else np.inf  # nonzero for -0 and 0


if __name__ == "__main__":
    main()
