"""The published training recipe of MambaVision, as far as all variants share it; configs/imagenet.py has the rest.

Its self-distillation from the moving average of the weights (MESA) is not part of this program.
"""

from types import MappingProxyType

from mambaout_jax.models.family import Recipe

RECIPE = Recipe(
    dataset="imagenet2012",
    values=MappingProxyType(
        {
            "batch_size": 4096,
            "num_epochs": 310,
            "optim.name": "lamb",
            "optim.learning_rate": 5e-3,
            "optim.cooldown_epochs": 10,
            "optim.clip_grad_norm": 5.0,
            "optim.ema_decay": 0.9998,
        }
    ),
    reference="Hatamizadeh and Kautz, MambaVision, 2025, and its published training configurations",
)
