"""Memory, traffic, time and cost of a run on TPUs, estimated by the TPU compiler."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
