"""The published training recipe of MambaOut; configs/imagenet.py adds the augmentation that all recipes share."""

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
            "optim.schedule": "per_epoch",
            # 4096 = 8 devices x 4 microbatches x 128 images; each microbatch has one draw of mixup or cutmix.
            "augment.mixup_group": 128,
            "model.drop_path_rate": 0.025,  # of the two smallest models; variants.py has those of the others
        }
    ),
    reference="Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, 2025: its five training scripts",
)
