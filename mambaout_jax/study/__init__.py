"""Training a model with and without an SSM, and comparing the results."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
