"""Tasks: everything that depends on what a label is."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
