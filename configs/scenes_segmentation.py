"""Segment handwritten digits on photographs with UperNet on a small MambaOut: a small end-to-end example.

python main.py --config=configs/scenes_segmentation.py --workdir=runs/scenes

Cost: about 8 minutes on two CPU cores. Result: 12.7 % mIoU, 84.4 % of the pixels, seed 0. The model finds the digits
but mixes up most of them after so short a training; num_epochs sets a longer one.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    config = default_config("segmentation")
    config.num_epochs = 24
    config.batch_size = 16
    config.eval_batch_size = 20
    config.eval_every_epochs = 8
    config.log_every_steps = 187  # one line an epoch

    config.data.name = "scenes"
    config.data.box = (128, 128)
    config.data.box_scale = (0.8, 1.25)
    config.data.cat_max_ratio = 0.9  # fewer crops of background alone
    config.data.hflip_prob = 0.0  # a mirrored digit is another sign
    config.data.photometric = False
    config.eval.window = 64
    config.eval.stride = 32

    config.model.update(
        name="upernet_mambaout_femto",
        img_size=64,
        depths=(1, 1, 2, 1),
        dims=(24, 48, 96, 128),
        channels=32,
        auxiliary_channels=16,
    )

    config.optim.learning_rate = 3e-3
    config.optim.warmup_epochs = 1
    config.optim.ema_decay = 0.99
    return config
