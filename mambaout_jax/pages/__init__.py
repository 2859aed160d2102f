"""Self-contained HTML pages and their figures, in one style."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
