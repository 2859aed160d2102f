"""Set up JAX, caches and tiers: types are checked, and ranks and (in ops) dtypes are never promoted silently."""

import atexit
import importlib
import multiprocessing.process
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compilation_cache import root, session_dir

# Tests start many processes: where Python does not write bytecode next to the sources, each would compile all of them.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(root() / "bytecode")
    sys.dont_write_bytecode = False
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shell without job control ignores Ctrl-C for what it starts with &, and programs inherit that from the tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests compile the same programs again and again, many in processes of their own. The workers of pytest-xdist share
# the cache of the process that starts them. TFDS reads its folder when it is imported: tests never touch a user's.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(session_dir())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"  # their path, in the session, would be part of keys
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="mambaout_jax-")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# No test depends on the speed of the machine.
hypothesis.settings.register_profile("any_speed", deadline=None)
hypothesis.settings.load_profile("any_speed")

# NumPy 2.0 starts a process when this module is imported, which most tests must not.
importlib.import_module("numpy.testing")
# Buckets are read in threads, which are abandoned after a timeout: one that still imported gcsfs would have TensorBoard
# see, in a later test, a part of the modules that both import.
importlib.import_module("gcsfs")

jaxtyping.install_import_hook(
    ["mambaout_jax.ops", "mambaout_jax.models", "mambaout_jax.tasks.classification.losses"], "beartype.beartype"
)


# The tests in here state laws of mathematics, which hold however a program is compiled, and most of their time went
# into optimizing programs that run once, for milliseconds. What is about memory, compiled text or whole runs has to see
# the program as users do: it lives elsewhere, starts a process of its own, or carries the marker `optimized`.
LAWS = (
    "ops",
    "models",
    "weights",
    "cases/test_second_derivatives.py",
    "train/test_step.py",
    "train/test_mixing.py",
    "train/test_training_agrees.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the tests of training: a worker that came to one at the end would keep the others waiting."""
    items.sort(key=lambda item: item.path.parent.name != "train")


def _refuse_to_start(*_, **__):
    pytest.fail("a test that starts a process needs the marker `run`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Keep the default tier in the processes of pytest, which keeps it fast."""
    with pytest.MonkeyPatch.context() as patch:
        if not any(map(item.get_closest_marker, ("run", "nightly"))):
            patch.setattr(subprocess.Popen, "__init__", _refuse_to_start)
            patch.setattr(multiprocessing.process.BaseProcess, "start", _refuse_to_start)
        return (yield)


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Compile without most optimizations where laws are stated."""
    place = request.path.relative_to(Path(__file__).parent)
    of_laws = any(place.is_relative_to(laws) for laws in LAWS) and not request.node.get_closest_marker("optimized")
    jax.config.update("jax_disable_most_optimizations", of_laws)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def strict_dtype_promotion(request):
    """Refuse to mix dtypes in the tests of ops; flax and optax mix them by design."""
    if "ops" not in request.path.relative_to(Path(__file__).parent).parts:
        yield
        return
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def no_type_checks(monkeypatch):
    """Leave annotations unchecked, as they are for a user, so that a test of bad input meets the user's error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pytest_terminal_summary(terminalreporter):
    """Count the reference data that no test compared."""
    from tests.models import golden

    for reason, count in golden.skipped().items():
        if count:
            terminalreporter.write_line(f"reference data: {count} cases skipped: {reason}")
