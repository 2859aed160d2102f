"""Make JAX strict: annotations are checked, ranks and (in ops) dtypes are never promoted in silence."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile the same steps again and again, many in processes of their own. The cache lives as long as the session:
# a process that a test kills may leave a truncated entry behind. TFDS reads its folder when it is imported: no test
# touches what a user has prepared.
for variable in ("JAX_COMPILATION_CACHE_DIR", "TFDS_DATA_DIR"):
    os.environ[variable] = tempfile.mkdtemp(prefix="mambaout_jax-")
    atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

jaxtyping.install_import_hook(
    ["mambaout_jax.ops", "mambaout_jax.models", "mambaout_jax.train.losses"], "beartype.beartype"
)


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
