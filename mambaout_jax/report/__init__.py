"""HTML pages and figures."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
