"""Tokens, FLOPs and memory of a model at the image size of a dataset."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
