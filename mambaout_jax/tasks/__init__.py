"""Tasks: what a label is, and everything that depends on it."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
