"""Make JAX strict: annotations are checked, ranks and (in ops) dtypes are never promoted in silence."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile the same steps again and again, many of them in processes of their own.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"mambaout_jax-tests-{os.getuid()}")
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook(
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
