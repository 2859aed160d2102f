"""HTML pages of one file each, and the figures on them, in one style."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
