"""Find handwritten digits on photographs with Mask R-CNN on a small MambaOut: a small end-to-end example.

python main.py --config=configs/scenes_detection.py --workdir=runs/scenes_detection

Cost: 15 minutes on two CPU cores. Result: 77.4 % box AP50, 58.3 % box AP and 58.7 % mask AP, the means of seeds 0, 1
and 2 (box AP50 from 76.7 to 77.8 %).
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    config = default_config("detection")
    config.num_epochs = 10
    config.batch_size = 8
    config.eval_batch_size = 10
    config.eval_every_epochs = 10
    config.log_every_steps = 125  # three lines an epoch

    config.data.name = "scenes"
    config.data.box = (128, 128)
    config.data.hflip_prob = 0.0  # mirrored digits are not valid digits
    config.data.max_objects = 12

    config.loss.pre_nms_top_k = 200
    config.loss.max_proposals = 100
    config.loss.rpn_samples = 64
    config.loss.roi_samples = 32
    config.eval.pre_nms_top_k = 200
    config.eval.max_proposals = 100

    config.model.update(
        name="mask_rcnn_mambaout_femto",
        img_size=128,
        depths=(1, 1, 2, 1),
        dims=(16, 32, 64, 128),
        kernel_size=3,
        channels=32,
        box_channels=128,
        anchor_scale=4.0,
    )

    config.optim.learning_rate = 4e-3
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 200
    config.optim.ema_decay = 0.995
    return config
