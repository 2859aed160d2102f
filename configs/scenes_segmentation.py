"""Segment handwritten digits on photographs with UperNet on a small MambaOut: a small end-to-end example.

python main.py --config=configs/scenes_segmentation.py --workdir=runs/scenes

Cost: 7.5 minutes on two CPU cores. Result: 49.3 % mIoU, 95.6 % pixel accuracy, the mean of seeds 0, 1 and 2 (49.0 to
49.9). Increase num_epochs to train longer.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    config = default_config("segmentation")
    config.num_epochs = 7
    config.batch_size = 4
    config.eval_batch_size = 20
    config.eval_every_epochs = 7
    config.log_every_steps = 250  # three lines an epoch

    config.data.name = "scenes"
    config.data.box = (128, 128)
    config.data.box_scale = (1.0, 1.0)
    config.data.cat_max_ratio = 1.0
    config.data.hflip_prob = 0.0  # mirrored digits are not valid digits
    config.data.photometric = False

    config.model.update(
        name="upernet_mambaout_femto",
        img_size=128,
        depths=(1, 1, 2, 1),
        dims=(16, 32, 64, 128),
        kernel_size=3,
        channels=16,
        auxiliary_channels=16,
        classifier_std=0.25,  # 0.01, for pretrained backbones, learns the digits much later
        drop_rate=0.0,
    )

    config.optim.learning_rate = 8e-3
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.995
    return config
