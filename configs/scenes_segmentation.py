"""Segment handwritten digits on photographs with UperNet on a small MambaOut: a small end-to-end example.

python main.py --config=configs/scenes_segmentation.py --workdir=runs/scenes

Cost: 6 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    config = default_config("segmentation")
    config.num_epochs = 20
    config.batch_size = 32
    config.eval_batch_size = 50
    config.eval_every_epochs = 5
    config.log_every_steps = 31

    config.data.name = "scenes"
    config.data.box = (128, 128)
    config.data.box_scale = (0.8, 1.25)
    config.data.hflip_prob = 0.0  # a mirrored digit is another sign
    config.data.photometric = False
    config.data.cat_max_ratio = 1.0

    config.model.update(
        name="upernet_mambaout_femto",
        img_size=128,
        depths=(1, 1, 2, 1),
        dims=(24, 48, 96, 128),
        channels=48,
        auxiliary_channels=24,
    )

    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 1
    config.optim.ema_decay = 0.99
    return config
