"""The published training recipe of MambaVision; variants.py has the values of single variants.

MESA starts after 25 to 30 % of the training, depending on the variant; 25 % is used for all. Its scale and
temperature are assumed to be 1.
"""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 4096,  # assumed, like the augmentation in configs/imagenet.py; not verified
            "num_epochs": 310,
            "optim.name": "lamb",
            "optim.learning_rate": 5e-3,
            "optim.warmup_epochs": 20,
            "optim.cooldown_epochs": 10,
            "optim.weight_decay": 0.05,
            "optim.clip_grad_norm": 5.0,
            "optim.ema_decay": 0.9998,
            "loss.mesa": 1.0,
            "loss.mesa_start": 0.25,
            "model.drop_path_rate": 0.2,
        }
    ),
    reference="Hatamizadeh and Kautz, MambaVision, 2025, and the training configurations of its code",
)
