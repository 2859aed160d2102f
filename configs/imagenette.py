"""Train MambaOut-Femto on Imagenette: ten easy classes of ImageNet, 9,469 training and 3,925 test images.

python -m mambaout_jax prepare imagenette/160px-v2
python main.py --config=configs/imagenette.py --workdir=runs/imagenette

The first command needs a network and the extra `prepare`. Cost and result: not measured yet; intended for one GPU or
TPU chip.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    config = default_config()
    config.num_epochs = 100
    config.batch_size = 128
    config.eval_batch_size = 128
    config.eval_every_epochs = 5
    config.log_every_steps = 73  # one line an epoch

    config.data.name = "imagenette/160px-v2"
    config.data.crop_scale = (0.25, 1.0)
    config.data.num_workers = 4

    config.model.update(name="mambaout_femto", img_size=128, drop_path_rate=0.025)

    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.augment.random_erasing_prob = 0.25

    config.optim.warmup_epochs = 10
    config.optim.ema_decay = 0.999
    return config
