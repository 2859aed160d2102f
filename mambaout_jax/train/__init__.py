"""Training: the loop, the step, the optimizer and the metrics."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
