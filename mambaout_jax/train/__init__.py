"""Training: the loop, the step, the optimizer and the metrics."""

from mambaout_jax.extras import check_installed

check_installed("train", __name__)

from mambaout_jax.train.optimizer import adamw, decay_mask, lamb, update_ema, warmup_cosine

__all__ = ["adamw", "decay_mask", "lamb", "update_ema", "warmup_cosine"]
