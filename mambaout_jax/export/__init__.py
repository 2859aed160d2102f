"""Export of a run's weights to other programs, and import into workdirs."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)
