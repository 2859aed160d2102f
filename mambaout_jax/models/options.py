"""What the options of models have in common."""

from mambaout_jax.checks import Require
from mambaout_jax.models.errors import ModelError

DTYPES = ("float32", "bfloat16")

require = Require(ModelError)
