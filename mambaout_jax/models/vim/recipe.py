"""The published training recipe of Vim.

The copies of an image in repeated augmentation are consecutive here, so most of them share a draw of mixup or cutmix;
in the original they are on different devices, each with a draw of its own.
"""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 1024,
            "optim.learning_rate": 1e-3,  # 5e-4 for 512 images
            "optim.warmup_epochs": 5,
            "num_epochs": 300,
            "optim.cooldown_epochs": 0,
            "optim.schedule": "per_epoch",
            "optim.weight_decay": 0.1,
            "optim.ema_decay": 0.99996,
            "data.interpolation": "bicubic",
            "data.repeated_aug": 3,
            # 1024 = 8 devices x 128 images; each device has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
            "model.drop_path_rate": 0.0,
        }
    ),
    reference="Zhu et al., Vision Mamba, 2024: vim/main.py and vim/scripts/pt-vim-t.sh of its code",
)
