"""Optional dependencies: the extra of this package that provides each module, and the error for a missing one.

It imports only `errors` and the standard library, so that every package can import it. `models`, `ops` and `weights`
run on the core dependencies; what they need of an extra is imported inside `importing`. Every other package but
`cli` calls `check_installed` when it is imported; commands import the others when they run.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from mambaout_jax.errors import UserError

# The modules that this package imports, by the extra in pyproject.toml that provides them.
MODULES = {
    "train": (
        "PIL",
        "absl",
        "array_record",
        "cv2",
        "etils",
        "grain",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "ml_collections",
        "optax",
        "orbax",
        "scipy",
        "simplejpeg",
        "sklearn",
        "tensorboardX",
        "tensorflow_datasets",
        "tqdm",
    ),
    "hub": ("huggingface_hub", "pooch"),
    "torch": ("torch", "timm"),
    "prepare": ("tensorflow",),
    "wandb": ("wandb",),
    "coco": ("pycocotools",),
    "demo": ("gradio",),
    "export": ("flatbuffers", "onnx", "onnxruntime"),
}


class MissingExtraError(UserError, ImportError):
    """An optional dependency that is not installed, in one sentence."""


def check_installed(extra: str, what: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        extra: a key of `MODULES`.
        what: what requires them, for the message.

    Raises:
        MissingExtraError: one is not installed.
    """
    if missing := [module for module in MODULES[extra] if not _is_installed(module)]:
        raise MissingExtraError(f"{what} requires {', '.join(missing)}; {install_command(extra)}")


@contextlib.contextmanager
def importing(extra: str, what: str) -> Iterator[None]:
    """Raise MissingExtraError if an import in the body of the `with` statement fails.

    Args:
        extra: a key of `MODULES`.
        what: start of the message: what requires which package, such as "a.pth requires PyTorch".
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError if PyTorch does not match
        reason = " ".join(str(error).split())
        raise MissingExtraError(f"{what} ({reason}); {install_command(extra)}") from error


@contextlib.contextmanager
def not_importing(module: str) -> Iterator[None]:
    """Make imports of a module fail in the body of the `with` statement, unless it is imported already.

    For packages that import an optional dependency wherever it is installed, whether they need it or not.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from the checkout that contains this package if there is one."""
    checkout = Path(__file__).resolve().parents[1]
    package = checkout if (checkout / "pyproject.toml").is_file() else "mambaout_jax"
    return f'pip install "{package}[{extra}]"'


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None  # None makes an import fail
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
