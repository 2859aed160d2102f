"""The folder of a run: its files, the rules for resuming, and loading the trained model."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import string
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from etils import epath

from mambaout_jax import distributed
from mambaout_jax.data import Source
from mambaout_jax.errors import UserError, printable, reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model, create_model, find_family
from mambaout_jax.ops import KERNELS_VARIABLE
from mambaout_jax.process import lock, own_command, within_seconds
from mambaout_jax.run.checkpoints import Checkpoints
from mambaout_jax.run.config import RunConfig, changed_keys, from_json
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import find_write_error, write_atomically
from mambaout_jax.storage import REMOTE_SECONDS, explain, find_pattern, find_undecodable, find_unknown_home, is_remote
from mambaout_jax.tasks.api import Labels, Task
from mambaout_jax.weights import license_notice, resample_variables
from mambaout_jax.words import processes

LOCK = ".lock"
# The packages that affect the numbers of a run.
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "pillow",
)  # fmt: skip
# Reference: documentation of Cloud Storage, "About Cloud Storage buckets", bucket names.
_IN_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9]/.")


class Run(NamedTuple):
    """A trained model with its config and task.

    Args:
        config: the config of the run, plain values.
        model: its `input_spec` has the crop with which the run is evaluated.
        labels: the labels of the dataset, as the task recorded them.
        step: the number of steps that the weights were trained.
        weights: the kind of weights in `variables`, "ema" or "raw".
        license: name of the license of the weights; None if they were trained from scratch or it is unknown.
    """

    config: RunConfig
    task: Task
    model: Model
    variables: dict[str, Any]
    labels: Labels
    step: int
    weights: str
    license: str | None = None

    @property
    def license_notice(self) -> str | None:
        """Return a sentence about a license that forbids commercial use; None for any other."""
        return None if self.license is None else license_notice(self.license, self.model.name)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes in the order of the labels; None if they are unknown."""
        names = self.labels.get("class_names")
        return None if names is None else tuple(names)

    def __repr__(self) -> str:
        return f"<run of {self.model.name} for {self.task.name}: {self.weights} weights of step {self.step}>"


def open_workdir(path: epath.PathLike, *, to_write: bool = False) -> epath.Path:
    """Return an absolute local path, which orbax requires, or the path in a reachable bucket.

    Args:
        to_write: checkpoints will be written, so the path may not have characters of a pattern.

    Raises:
        RunError: the path is invalid, or the bucket cannot be reached.
    """
    if not os.fspath(path):
        raise RunError("the path of the workdir is empty; expected a folder")
    if re.match(r"\w+:/", os.fspath(path)) and not _IN_BUCKET.match(os.fspath(path)):
        raise RunError(f"{path} is not a valid workdir; expected a folder or gs://BUCKET/..., the bucket in lower case")
    if fault := find_unknown_home(path) or find_undecodable(path):
        raise RunError(f"workdir {path} {fault}")
    if to_write and (fault := find_pattern(path)):
        raise RunError(f"workdir {path} {fault}")
    if not is_remote(path):
        return epath.Path(path).expanduser().absolute()
    workdir = epath.Path(path)
    try:
        within_seconds(REMOTE_SECONDS, workdir.exists)
    except Exception as error:  # each storage client raises its own types
        raise RunError(
            f"workdir {path} cannot be reached ({explain(error)}); check its name, your permissions and the network"
        ) from error
    return workdir


@contextlib.contextmanager
def lock_workdir(workdir: epath.Path) -> Iterator[None]:
    """Lock a local folder for this process during the context; the kernel releases the lock if the process dies.

    Buckets are not locked.

    Raises:
        RunError: another process has the lock.
        OSError: the folder is not writable.
    """
    if is_remote(workdir):
        yield
        return
    with open(os.fspath(workdir / LOCK), "a") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise RunError(
                f"workdir {workdir} is in use by another process; wait until it ends or use another --workdir"
            ) from error
        except OSError as error:  # some network file systems do not support locks
            raise_machine_fault(error, workdir)
            sentence = f"workdir {workdir} cannot be locked ({reason(error)}); make sure that no other process uses it"
            print(printable(sentence), file=sys.stderr)
        yield


def is_workdir(path: epath.PathLike) -> bool:
    """Return whether a path is the workdir of a run, rather than a file or folder of PyTorch weights."""
    workdir = open_workdir(path)
    return (workdir / "environment.json").exists() or has_checkpoints(workdir)


def has_checkpoints(workdir: epath.Path) -> bool:
    """Return whether a workdir has checkpoints of a run, readable or not."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(path.name[0] in string.digits for path in folder.iterdir())


def claim_workdir(path: epath.PathLike, config: RunConfig) -> epath.Path:
    """Create the workdir, or check that its run may be resumed with this config; existing files are not changed.

    Raises:
        RunError: the workdir is not writable, or `config.resume` does not allow resuming its run.
    """
    workdir = open_workdir(path, to_write=True)
    if fault := find_write_error(workdir):
        raise RunError(f"workdir {workdir} is not writable ({fault}); use another --workdir")
    if (kept := workdir / "checkpoints").exists() and not kept.is_dir():
        raise RunError(f"{kept} is not a directory; move it, or use another --workdir")
    if others := distributed.check_shared_filesystem(workdir):
        raise RunError(
            f"workdir {workdir} on {processes(others)} is not the folder of process 0; use one that all hosts share"
        )
    # A run that was stopped before its first checkpoint has nothing to resume.
    if has_checkpoints(workdir):
        if not (workdir / "config.json").exists():
            raise RunError(
                f"workdir {workdir} has checkpoints but no config.json; restore the file, or use another --workdir"
            )
        _check_resume(workdir, load_config(workdir), config)
    return workdir


def _check_resume(workdir: epath.Path, recorded: RunConfig, config: RunConfig) -> None:
    if "imported_from" in load_environment(workdir):
        raise RunError(
            f"workdir {workdir} has imported weights and no run to resume; use another --workdir and start from these "
            f"weights with --config.init_from={workdir}"
        )
    check_same_model(workdir, recorded, config)
    if config.resume == "never":
        raise RunError(f"workdir {workdir} has a run and config.resume is 'never'; use another --workdir")
    if config.resume == "same" and (changes := changed_keys(config, recorded)):
        raise RunError(
            f"workdir {workdir} has a run with another config: {'; '.join(changes)}. Use another --workdir, or add "
            "--config.resume=any to resume with this config"
        )


def check_same_model(workdir: epath.Path, recorded: RunConfig, config: RunConfig) -> None:
    """Check that the run in a workdir has the task and the model family of a config.

    Raises:
        RunError: the task or the family differs.
    """
    if recorded.task is not config.task:
        raise RunError(
            f"workdir {workdir} has a run of the task {recorded.task.name!r} but config.task is "
            f"{config.task.name!r}; use another --workdir"
        )
    names = recorded.model.get("name", ""), config.model.get("name", "")
    theirs, ours = map(find_family, names)
    if theirs is not ours:
        raise RunError(
            f"workdir {workdir} has a run of {names[0]}, a {theirs.module.__name__}, but config.model.name is "
            f"{names[1]!r}, a {ours.module.__name__}; use another --workdir"
        )


def check_space(workdir: epath.Path, num_bytes: int) -> None:
    """Check that the disk has enough space for the checkpoints of a run.

    Args:
        num_bytes: size of the checkpoints that are not written yet.

    Raises:
        RunError: the disk has less space.
    """
    if is_remote(workdir):
        return
    free = shutil.disk_usage(workdir).free
    if free < num_bytes:
        raise RunError(
            f"{workdir} has {free / 2**20:,.0f} MiB of free space but the checkpoints need {num_bytes / 2**20:,.0f} "
            "MiB; free some space or use another disk"
        )


def load_config(path: epath.PathLike) -> RunConfig:
    """Load the config of a workdir; that of imported weights has only the keys of an evaluation.

    Raises:
        RunError: the config does not exist or cannot be read.
    """
    workdir = epath.Path(path)
    recorded = workdir / "config.json"
    try:
        return from_json(recorded.read_text())
    except OSError as error:
        raise_machine_fault(error, recorded)
        fault = error.strerror or "not found"  # errors of storage clients have no strerror
        raise RunError(f"{path} is not the workdir of a run: it has no readable config.json ({fault})") from error
    except UserError as error:
        raise RunError(f"{recorded}: {error}") from error
    except ValueError as error:
        raise RunError(f"{recorded} is not a valid config of a run ({reason(error)})") from error


def is_imported(workdir: epath.Path) -> bool:
    """Return whether a workdir has imported weights rather than a run."""
    try:
        return "imported_from" in json.loads((workdir / "environment.json").read_text())
    except (OSError, ValueError, TypeError) as error:
        raise_machine_fault(error, workdir)
        return False


def load_run(path: epath.PathLike, weights: str | None = None) -> Run:
    """Load the model of a workdir with the weights of its newest checkpoint.

    A license that forbids commercial use of the weights is stated in a warning.

    Args:
        path: a folder, or gs://BUCKET/...
        weights: "ema" or "raw"; None for "ema" if the run has an average, else "raw".

    Raises:
        RunError: the workdir has no run, no readable checkpoint, or no such weights.
    """
    run = restore_run(path, weights)
    if run.license_notice:
        warnings.warn(f"{path}: {run.license_notice}", stacklevel=2)
    return run


def restore_run(path: epath.PathLike, weights: str | None = None) -> Run:
    """Load the model of a workdir as in `load_run`, without a warning."""
    if weights not in (None, "ema", "raw"):
        raise RunError(f"weights is {weights!r}; expected 'ema', 'raw' or None")
    workdir = open_workdir(path)
    config = load_config(workdir)
    environment = load_environment(workdir)
    labels = environment["labels"]
    task = config.build_task()
    model = task.build_model(labels)
    weights = weights or ("raw" if config.optim.ema_decay is None else "ema")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    abstract = distributed.sharded_shapes(
        model.init, jax.random.key(0), sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )
    step, variables = checkpoints.restore_variables(abstract, [weights])
    checkpoints.close()
    return Run(config, task, model, variables[weights], labels, step, weights, environment.get("license"))


def exact_model(run: Run, img_size: tuple[int, int] | None = None) -> tuple[Model, dict[str, Any]]:
    """Return the model of a run in float32, without what only saves memory in training, and its variables.

    Args:
        img_size: (height, width); None for that of the run.

    Raises:
        ModelError: the model cannot have the size.
    """
    model = run.model
    spec = {key: value for key, value in model.input_spec._asdict().items() if key != "size"}
    options = {**model.options, **spec, "dtype": "float32", "img_size": img_size or model.input_spec.size}
    options["kernels"] = model.kernels
    options |= {key: value for key, value in {"scan_blocks": False, "remat": "none"}.items() if key in options}
    exact = create_model(model.name, **options)
    return exact, resample_variables(exact, run.variables, model.input_spec.size)


def load_environment(workdir: epath.Path) -> dict[str, Any]:
    """Load the environment that `record_run` wrote, with "labels" for the outputs of the model.

    Raises:
        RunError: the file is missing or invalid.
    """
    path = workdir / "environment.json"
    try:
        environment = json.loads(path.read_text())
        if not isinstance(environment["labels"], dict):
            raise TypeError("labels are not an object")
    except FileNotFoundError:
        raise RunError(
            f"{workdir} has neither a run nor imported weights; train first, or use another workdir"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise_machine_fault(error, workdir)
        raise RunError(f"{path} is damaged ({reason(error)}); restore it, or use another workdir") from error
    return environment


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_environment(
    source: Source, license: str | None = None, teacher: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return everything that a run depends on, apart from its config: versions, devices, dataset, teacher.

    Args:
        license: name of the license of the weights that the run started from, if known.
        teacher: the entries that identify the teacher; empty without one.
    """
    return {
        **_versions(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "command": shlex.join(own_command()),
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "labels": dict(source.labels),
        **({} if license is None else {"license": license}),
        **teacher,
    }


def describe_program(config: RunConfig) -> dict[str, str]:
    """Return everything that must be equal in all processes of a run: code, config and versions."""
    return {
        **_versions(),
        "mambaout_jax's code": _hash_code(Path(__file__).parent.parent),
        **{f"the code of plugin {name}": _hash_code(_code_of(name)) for name in config.plugins},
        "local devices": str(jax.local_device_count()),
        KERNELS_VARIABLE: os.environ.get(KERNELS_VARIABLE, ""),
        **{f"config.{key}": repr(value) for key, value in config.values.items()},
    }


def _code_of(module: str) -> Path:
    """Return the file of a module or the folder of a package."""
    file = Path(sys.modules[module].__file__)
    return file.parent if file.name == "__init__.py" else file


def _hash_code(place: Path) -> str:
    code = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        code.update(f"{file.relative_to(place.parent)}\0".encode() + file.read_bytes())
    return code.hexdigest()[:12]


def record_run(workdir: epath.Path, config: RunConfig, environment: dict[str, Any]) -> None:
    """Write the config and the environment of a run after all checks have passed."""
    write_atomically(workdir / "config.json", config.to_json())
    write_atomically(workdir / "environment.json", json.dumps(environment, indent=2) + "\n")
