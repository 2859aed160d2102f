"""The published training recipe of PlainMamba-L2; variants.py has what differs for the others."""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 2048,
            "num_epochs": 300,
            "optim.learning_rate": 2e-3,
            # Shares of the learning rate: 1/1000 where the warm-up starts, 1/100 at the end.
            "optim.warmup_learning_rate": 2e-6,
            "optim.min_learning_rate": 2e-5,
            "optim.warmup_epochs": 20,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_step",
            "optim.clip_grad_norm": 1.0,
            "optim.ema_decay": 0.9999,
            "data.interpolation": "bicubic",
            # 2048 = 8 devices x 256 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 256,
            "model.drop_path_rate": 0.2,
        }
    ),
    reference="Yang et al., PlainMamba, 2024: plain_mamba_configs and the configs of mmcls that they are based on",
)
