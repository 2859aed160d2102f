"""A run on disk: config, workdir, checkpoints, logs, and how it ends."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
