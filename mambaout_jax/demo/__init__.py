"""A page that runs a model in the browser."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
