"""Weights of a run for other programs, and theirs for a run."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
