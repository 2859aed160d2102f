"""The published training recipe of VMamba; configs/imagenet.py adds the augmentation that all recipes share."""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

# The cosine of the learning rate starts at epoch 0 here, and after the warm-up in the original.
RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 1024,
            "optim.learning_rate": 1e-3,
            "optim.warmup_epochs": 20,
            "num_epochs": 300,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_step",
            "optim.clip_grad_norm": 5.0,
            "optim.ema_decay": 0.9999,
            "data.interpolation": "bicubic",
            # 1024 = 8 devices x 128 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
            "model.drop_path_rate": 0.2,
        }
    ),
    reference="Liu et al., VMamba: Visual State Space Model, 2024: classification/config.py and main.py of the code",
)
