"""The folder of a run: its files, when it may be used again, and how to load what was trained."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import Source
from mambaout_jax.data.buckets import REMOTE_SECONDS, explain, is_remote
from mambaout_jax.models import Model, find_family
from mambaout_jax.process import lock, within_seconds
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig, changed_keys, from_json
from mambaout_jax.run.errors import USER_ERRORS, RunError
from mambaout_jax.run.files import fault_of_writing, write_atomically
from mambaout_jax.tasks.api import Labels, Task

LOCK = ".lock"
# Those that decide what a run computes.
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "pillow",
)  # fmt: skip
# Reference: Cloud Storage's documentation, "About Cloud Storage buckets", on names.
_IN_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9]/.")


class Run(NamedTuple):
    """What inference needs of a trained run.

    Args:
        labels: what the outputs mean, as the task wrote it down.
        weights: which of them `variables` are, "ema" or "raw".
    """

    config: RunConfig
    task: Task
    model: Model
    variables: dict[str, Any]
    labels: Labels
    step: int
    weights: str


def open_workdir(path: epath.PathLike) -> epath.Path:
    """Return an absolute local path, which orbax requires, or check that a bucket answers.

    Raises:
        RunError: it is neither, or the bucket does not answer.
    """
    if not os.fspath(path):
        raise RunError("the workdir has an empty name; a folder is expected")
    if re.match(r"\w+:/", os.fspath(path)) and not _IN_BUCKET.match(os.fspath(path)):
        raise RunError(f"{path} is not a workdir; a folder or gs://BUCKET/... is expected, the bucket in lower case")
    if not is_remote(path):
        return epath.Path(path).expanduser().absolute()
    workdir = epath.Path(path)
    try:
        within_seconds(REMOTE_SECONDS, workdir.exists)
    except Exception as error:  # each client of a bucket raises types of its own
        raise RunError(
            f"workdir {path} cannot be reached ({explain(error)}); look at its name, your rights and the network"
        ) from error
    return workdir


@contextlib.contextmanager
def lock_workdir(workdir: epath.Path) -> Iterator[None]:
    """Lock a local folder for this process while the context is open; the kernel unlocks it if the process dies.

    A bucket is not locked.

    Raises:
        RunError: another process has locked it.
        OSError: it cannot be written.
    """
    if is_remote(workdir):
        yield
        return
    with open(os.fspath(workdir / LOCK), "a") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise RunError(
                f"workdir {workdir} is in use by another process; wait for its end or name another with --workdir"
            ) from error
        except OSError as error:  # some network file systems have no locks
            print(
                f"workdir {workdir} cannot be locked ({error.strerror}); let no other process use it", file=sys.stderr
            )
        yield


def is_workdir(path: epath.PathLike) -> bool:
    """Check whether a path is the workdir of a run, not a file or folder of another program's weights."""
    workdir = open_workdir(path)
    return (workdir / "environment.json").exists() or _has_checkpoints(workdir)


def _has_checkpoints(workdir: epath.Path) -> bool:
    return any((workdir / "checkpoints").glob("[0-9]*"))


def claim_workdir(path: epath.PathLike, config: RunConfig) -> epath.Path:
    """Create the workdir, or check that the run in it may be resumed with this config; existing files are not changed.

    Raises:
        RunError: it cannot be written, or `config.resume` does not allow to resume its run.
    """
    workdir = open_workdir(path)
    if fault := fault_of_writing(workdir):
        raise RunError(f"workdir {workdir} cannot be written ({fault}); name another with --workdir")
    if (kept := workdir / "checkpoints").exists() and not kept.is_dir():
        raise RunError(f"{kept} is not a directory; move it, or name another --workdir")
    if blind := distributed.check_shared_filesystem(workdir):
        raise RunError(
            f"process 0 does not have the workdir of process {', '.join(map(str, blind))} (here it is {workdir}); name "
            "one that all hosts share"
        )
    # A run that was stopped before its first checkpoint has nothing to resume.
    if _has_checkpoints(workdir):
        if not (workdir / "config.json").exists():
            raise RunError(
                f"workdir {workdir} has checkpoints and no config.json, so it is unknown of which run; restore the "
                "file, or name another with --workdir"
            )
        _check_resume(workdir, load_config(workdir), config)
    return workdir


def _check_resume(workdir: epath.Path, recorded: RunConfig, config: RunConfig) -> None:
    if "imported_from" in load_environment(workdir):
        raise RunError(
            f"workdir {workdir} has imported weights, which no run can resume from; name another with --workdir, and "
            f"start from these by --config.init_from={workdir}"
        )
    check_same_model(workdir, recorded, config)
    if config.resume == "never":
        raise RunError(f"workdir {workdir} has a run and config.resume is 'never'; name another with --workdir")
    if config.resume == "same" and (changes := changed_keys(config, recorded)):
        raise RunError(
            f"workdir {workdir} has a run with another config: {'; '.join(changes)}. Name another --workdir, or "
            "resume with this config by --config.resume=any"
        )


def check_same_model(workdir: epath.Path, recorded: RunConfig, config: RunConfig) -> None:
    """Check that a workdir has a run of the task and of the family that a config names.

    Raises:
        RunError: it has one of others, which are named.
    """
    if recorded.task is not config.task:
        raise RunError(
            f"workdir {workdir} has a run of the task {recorded.task.name!r} and config.task is "
            f"{config.task.name!r}; name another with --workdir"
        )
    names = recorded.model.get("name", ""), config.model.get("name", "")
    theirs, ours = map(find_family, names)
    if theirs is not ours:
        raise RunError(
            f"workdir {workdir} has a run of {names[0]}, a {theirs.module.__name__}, and config.model.name is "
            f"{names[1]!r}, a {ours.module.__name__}; name another with --workdir"
        )


def check_space(workdir: epath.Path, num_bytes: int) -> None:
    """Check that the disk has room for the checkpoints of a run.

    Args:
        num_bytes: of the checkpoints that are still to be written.

    Raises:
        RunError: the disk has less room.
    """
    if is_remote(workdir):
        return
    free = shutil.disk_usage(workdir).free
    if free < num_bytes:
        raise RunError(
            f"{workdir} has {free / 2**20:.3g} MiB free where the checkpoints need {num_bytes / 2**20:.3g} MiB; make "
            "room or name another place"
        )


def load_config(path: epath.PathLike) -> RunConfig:
    """Read the config of a workdir; that of imported weights has what an evaluation needs.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    workdir = epath.Path(path)
    recorded = workdir / "config.json"
    try:
        return from_json(recorded.read_text())
    except OSError as error:
        fault = error.strerror or "not found"  # errors of a bucket's client have no words of their own
        raise RunError(f"{path} is not the workdir of a run: it has no readable config.json ({fault})") from error
    except ValueError as error:
        if isinstance(error, USER_ERRORS):
            raise RunError(f"{recorded}: {error}") from error
        raise RunError(f"{recorded} is not the JSON that a run writes ({error})") from error


def is_imported(workdir: epath.Path) -> bool:
    """Check whether a workdir has imported weights rather than a run."""
    try:
        return "imported_from" in json.loads((workdir / "environment.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def load_run(path: epath.PathLike, weights: str | None = None) -> Run:
    """Load the model of a workdir with the weights of its newest checkpoint.

    Args:
        weights: "ema" or "raw"; None for the average where one was kept.

    Raises:
        RunError: the workdir has no run, no readable checkpoint, or no average.
    """
    workdir = open_workdir(path)
    config = load_config(workdir)
    labels = load_environment(workdir)["labels"]
    task = config.build_task()
    model = task.build_model(labels)
    weights = weights or ("raw" if config.optim.ema_decay is None else "ema")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    abstract = distributed.sharded_shapes(
        model.init, jax.random.key(0), placed=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    step, variables = checkpoints.restore_variables(abstract, [weights])
    checkpoints.close()
    return Run(config, task, model, variables[weights], labels, step, weights)


def load_environment(workdir: epath.Path) -> dict[str, Any]:
    """Read what `record_run` wrote: "labels", what the outputs of the model mean, and more.

    Raises:
        RunError: it is not there or is something else.
    """
    try:
        environment = json.loads((workdir / "environment.json").read_text())
        if "labels" not in environment:  # of a run from before labels had a key of their own
            environment["labels"] = {
                name: environment.pop(name) for name in ("num_classes", "class_names") if name in environment
            }
            if not any(environment["labels"].values()):
                raise ValueError("no labels")
        if not isinstance(environment["labels"], dict):
            raise TypeError("labels are not an object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{workdir / 'environment.json'} is not what a run writes ({error!r}); train there first"
        ) from error
    return environment


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_environment(source: Source) -> dict[str, Any]:
    """Return what a run depends on besides its config: versions, devices, dataset."""
    return {
        **_versions(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "command": shlex.join(sys.argv),
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "labels": dict(source.labels),
    }


def describe_program(config: RunConfig) -> dict[str, str]:
    """Return what has to be the same in all processes of a run: code, config and versions."""
    return {
        **_versions(),
        "mambaout_jax's code": _hash_code(Path(__file__).parent.parent),
        **{f"the code of plugin {name}": _hash_code(_code_of(name)) for name in config.plugins},
        "local devices": str(jax.local_device_count()),
        **{f"config.{key}": repr(value) for key, value in config.values.items()},
    }


def _code_of(module: str) -> Path:
    """Return the file of a module, or the folder of a package."""
    file = Path(sys.modules[module].__file__)
    return file.parent if file.name == "__init__.py" else file


def _hash_code(place: Path) -> str:
    code = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        code.update(f"{file.relative_to(place.parent)}\0".encode() + file.read_bytes())
    return code.hexdigest()[:12]


def record_run(workdir: epath.Path, config: RunConfig, environment: dict[str, Any]) -> None:
    """Write the config and the environment of a run, once all checks have passed."""
    write_atomically(workdir / "config.json", config.to_json())
    write_atomically(workdir / "environment.json", json.dumps(environment, indent=2) + "\n")
