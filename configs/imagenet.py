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

from mambaout_jax.run.config import default_config, published_recipes

# Divisors of the steps per epoch (312, 625, 1251, 2502), by batch size.
LOG_EVERY_STEPS = {4096: 52, 2048: 125, 1024: 139, 512: 139}


def get_config(model: str) -> ConfigDict:
    """Return the experiment of a model: what differs from the defaults in docs/config.md."""
    recipes = published_recipes()
    if model not in recipes:
        raise ValueError(f"no published recipe for {model!r}; expected one of {', '.join(recipes)}")
    config = default_config()
    config.seed = 42
    config.eval_batch_size = 1024

    config.data.auto_augment = "rand-m9-mstd0.5-inc1"
    config.data.num_workers = 32

    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.augment.mixup_group = 128
    config.augment.random_erasing_prob = 0.25

    # What differs between models: mambaout_jax/models/*/recipe.py and variants.py.
    for key, value in recipes[model].items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    config.microbatch_size = max(128, config.augment.mixup_group)
    config.log_every_steps = LOG_EVERY_STEPS[config.batch_size]
    return config
