"""Train a model on ImageNet-1k with its published recipe; the argument is the model.

python -m mambaout_jax prepare imagenet --tars DIR
python main.py --config=configs/imagenet.py:mambaout_tiny --workdir=runs/mambaout_tiny

| argument | parameters | drop path rate | published top-1 at 224 px |
|---|---|---|---|
| mambaout_femto | 7.30 M | 0.025 | 78.9 % |
| mambaout_kobe | 9.14 M | 0.025 | 80.0 % |
| mambaout_tiny | 26.55 M | 0.2 | 82.7 % |
| mambaout_small | 48.49 M | 0.4 | 84.1 % |
| mambaout_base | 84.81 M | 0.6 | 84.2 % |
| vim_tiny | 7.15 M | 0 | 76.1 % |
| vim_small | 25.80 M | 0.05 | 80.5 % |
| localvim_tiny | 7.99 M | 0.1 | 76.2 % |
| vmamba_tiny_s1l8 | 30.25 M | 0.2 | 82.6 % |
| vmamba_small_s1l20 | 49.01 M | 0.3 | 83.3 % |
| vmamba_base_s1l20 | 86.61 M | 0.5 | 83.8 % |
| vmamba_tiny_s2l5 | 30.71 M | 0.2 | 82.5 % |
| vmamba_small_s2l15 | 50.15 M | 0.3 | 83.6 % |
| vmamba_base_s2l15 | 88.56 M | 0.6 | 83.9 % |
| vmamba_tiny_v0 | 22.89 M | 0.2 | 82.2 % |
| vmamba_small_v0 | 44.42 M | 0.3 | 83.5 % |
| vmamba_base_v0 | 76.25 M | 0.6 | 83.7 % |
| localvmamba_tiny | 25.53 M | 0.2 | 82.7 % |
| localvmamba_small | 49.75 M | 0.2 | 83.7 % |
| plainmamba_l1 | 7.55 M | 0.2 | 77.9 % |
| plainmamba_l2 | 26.15 M | 0.2 | 81.6 % |
| plainmamba_l3 | 50.96 M | 0.4 | 82.3 % |
| mambavision_t | 31.79 M | 0.2 | 82.3 % |
| mambavision_t2 | 35.10 M | 0.2 | 82.7 % |
| mambavision_s | 50.14 M | 0.2 | 83.3 % |
| mambavision_b | 97.69 M | 0.3 | 84.2 % |
| mambavision_l | 227.96 M | 0.3 | 85.0 % |
| mambavision_l2 | 241.55 M | 0.3 | 85.3 % |

Cost and result: not measured here yet. docs/recipe.md lists all hyperparameters of MambaOut and what may be changed.
The learning rate of MambaOut and Vim is constant within an epoch, as published; --config.optim.schedule=per_step
changes it at every step.
Vim is trained with repeated augmentation: an epoch has a third of the images, each in three consecutive rows.
MambaVision is trained with self-distillation from the moving average of its weights (MESA). Its batch size and
augmentation are assumed to be those of MambaOut.
Use --config.model.dtype=bfloat16 on TPUs. Measure how many data.num_workers a machine needs with
`python -m mambaout_jax bench-data --config=configs/imagenet.py:mambaout_tiny`.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config

# What differs between the recipes.
MAMBAOUT = {
    "num_epochs": 310,
    "batch_size": 4096,
    "log_every_steps": 52,  # six lines an epoch of 312 steps
    "data.crop_pct": 1.0,
    "optim.learning_rate": 4e-3,
    "optim.cooldown_epochs": 10,
    "optim.schedule": "per_epoch",
}
VIM = {
    "num_epochs": 300,
    "batch_size": 1024,
    "log_every_steps": 139,  # nine lines an epoch of 1251 steps
    "data.crop_pct": 0.875,
    "data.interpolation": "bicubic",
    "data.repeated_aug": 3,
    "optim.learning_rate": 1e-3,
    "optim.warmup_epochs": 5,
    "optim.schedule": "per_epoch",
    "optim.weight_decay": 0.1,
    "optim.ema_decay": 0.99996,
}
VMAMBA = {
    "num_epochs": 300,
    "batch_size": 1024,
    "log_every_steps": 139,
    "data.crop_pct": 0.875,
    "data.interpolation": "bicubic",
    "optim.learning_rate": 1e-3,
    "optim.clip_grad_norm": 5.0,
    "optim.ema_decay": 0.9999,
}
LOCALMAMBA = {
    "num_epochs": 300,
    "batch_size": 1024,
    "log_every_steps": 139,
    "data.crop_pct": 0.875,
    "data.interpolation": "bicubic",
    "data.auto_augment": "rand-m9-mstd0.5",
    "augment.mixup_alpha": 0.2,
    "optim.learning_rate": 1e-3,
    "optim.warmup_learning_rate": 1e-7,
    "optim.min_learning_rate": 1e-6,
    "optim.weight_decay": 0.04,
}
PLAINMAMBA = {
    "num_epochs": 300,
    "batch_size": 2048,
    "microbatch_size": 256,
    "log_every_steps": 125,  # five lines an epoch of 625 steps
    "data.crop_pct": 0.875,
    "data.interpolation": "bicubic",
    "augment.mixup_group": 256,
    "optim.learning_rate": 2e-3,
    "optim.warmup_learning_rate": 2e-6,
    "optim.min_learning_rate": 2e-5,
    "optim.clip_grad_norm": 1.0,
    "optim.ema_decay": 0.9999,
}
PLAINMAMBA_L1 = PLAINMAMBA | {"optim.warmup_epochs": 15, "optim.clip_grad_norm": 5.0, "optim.ema_decay": None}
PLAINMAMBA_L3 = PLAINMAMBA | {
    "batch_size": 1024,
    "log_every_steps": 139,  # nine lines an epoch of 1251 steps
    "optim.learning_rate": 1e-3,
    "optim.warmup_learning_rate": 1e-6,
    "optim.min_learning_rate": 1e-5,
}
MAMBAVISION = {
    "num_epochs": 310,
    "batch_size": 4096,
    "log_every_steps": 52,
    "optim.name": "lamb",
    "optim.learning_rate": 5e-3,
    "optim.cooldown_epochs": 10,
    "optim.clip_grad_norm": 5.0,
    "optim.ema_decay": 0.9998,
    "loss.mesa": 1.0,
}
# Recipe and drop path rate of each model.
MODELS = {
    "mambaout_femto": (MAMBAOUT, 0.025),
    "mambaout_kobe": (MAMBAOUT, 0.025),
    "mambaout_tiny": (MAMBAOUT, 0.2),
    "mambaout_small": (MAMBAOUT, 0.4),
    "mambaout_base": (MAMBAOUT, 0.6),
    "vim_tiny": (VIM, 0.0),
    "vim_small": (VIM | {"batch_size": 512, "augment.mixup_group": 64, "optim.weight_decay": 0.05}, 0.05),
    "localvim_tiny": (LOCALMAMBA, 0.1),
    "vmamba_tiny_s1l8": (VMAMBA, 0.2),
    "vmamba_small_s1l20": (VMAMBA, 0.3),
    "vmamba_base_s1l20": (VMAMBA, 0.5),
    "vmamba_tiny_s2l5": (VMAMBA, 0.2),
    "vmamba_small_s2l15": (VMAMBA, 0.3),
    "vmamba_base_s2l15": (VMAMBA, 0.6),
    "vmamba_tiny_v0": (VMAMBA | {"optim.ema_decay": None}, 0.2),
    "vmamba_small_v0": (VMAMBA, 0.3),
    "vmamba_base_v0": (VMAMBA, 0.6),
    "localvmamba_tiny": (LOCALMAMBA, 0.2),
    "localvmamba_small": (LOCALMAMBA, 0.2),
    "plainmamba_l1": (PLAINMAMBA_L1, 0.2),
    "plainmamba_l2": (PLAINMAMBA, 0.2),
    "plainmamba_l3": (PLAINMAMBA_L3, 0.4),
    "mambavision_t": (MAMBAVISION | {"loss.mesa": 0.5}, 0.2),
    "mambavision_t2": (MAMBAVISION | {"loss.mesa": 0.75}, 0.2),
    "mambavision_s": (MAMBAVISION, 0.2),
    "mambavision_b": (MAMBAVISION | {"optim.warmup_epochs": 35, "optim.weight_decay": 0.075}, 0.3),
    "mambavision_l": (MAMBAVISION | {"optim.weight_decay": 0.12, "loss.mesa": 6.0}, 0.3),
    "mambavision_l2": (MAMBAVISION | {"optim.weight_decay": 0.12, "loss.mesa": 6.0}, 0.3),
}


def get_config(model: str) -> ConfigDict:
    """Return the experiment of a model: what differs from the defaults in docs/config.md."""
    if model not in MODELS:
        raise ValueError(f"no published recipe for {model!r}; expected one of {', '.join(MODELS)}")
    recipe, drop_path_rate = MODELS[model]
    config = default_config()
    config.seed = 42
    config.microbatch_size = 128
    config.eval_batch_size = 1024

    config.data.name = "imagenet2012"
    config.data.auto_augment = "rand-m9-mstd0.5-inc1"
    config.data.num_workers = 32

    config.model.update(name=model, drop_path_rate=drop_path_rate)

    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.augment.mixup_group = 128
    config.augment.random_erasing_prob = 0.25

    config.optim.warmup_epochs = 20
    config.update_from_flattened_dict(recipe)
    return config
