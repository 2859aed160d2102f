"""The training recipe that MambaOut was published with; configs/imagenet.py contains all of it."""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 4096,
            "optim.learning_rate": 4e-3,
            "optim.warmup_epochs": 20,
            "num_epochs": 310,
            "optim.cooldown_epochs": 10,
            "augment.mixup_group": 128,
        }
    ),
    # 8 devices of 128 images in 4 parts, each of which draws one mixup or cutmix.
    reference="Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, 2024: its five training scripts",
)
