"""The published training recipe of LocalVim; configs/imagenet.py contains all of it but auto_augment."""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

# The cosine of the learning rate starts at epoch 0 here, and after the warm-up in the original. The original
# auto_augment, rand-m9-mstd0.5, is not listed: without inc1, it is not available here.
RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 1024,
            "optim.learning_rate": 1e-3,
            "optim.warmup_learning_rate": 1e-7,
            "optim.min_learning_rate": 1e-6,
            "optim.warmup_epochs": 20,
            "num_epochs": 300,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_step",
            "optim.weight_decay": 0.04,
            "data.interpolation": "bicubic",
            "augment.mixup_alpha": 0.2,
            # 1024 = 8 devices x 128 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
        }
    ),
    reference="Huang et al., LocalMamba, 2024: classification/configs/strategies/local_mamba/config.yaml of its code",
)
