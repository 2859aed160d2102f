"""The published training recipe of LocalVMamba; configs/imagenet.py contains all of it but auto_augment."""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

# The original auto_augment, rand-m9-mstd0.5, is not listed: without inc1, it is not available here. The repository does
# not state whether the published weights were trained with gradient clipping or a moving average.
RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 1024,
            "optim.learning_rate": 1e-3,
            "optim.warmup_learning_rate": 1e-7,
            "optim.min_learning_rate": 1e-6,
            "optim.weight_decay": 0.04,
            "optim.warmup_epochs": 20,
            "num_epochs": 300,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_step",
            "data.interpolation": "bicubic",
            "augment.mixup_alpha": 0.2,
            # 1024 = 8 devices x 128 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
        }
    ),
    reference="Huang et al., LocalMamba, 2024: classification/configs/strategies/local_mamba/config.yaml of the code",
)
