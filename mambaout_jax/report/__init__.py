"""The HTML report of a run."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
