"""Runs on disk: config, workdir, checkpoints, logs, errors and signals."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
