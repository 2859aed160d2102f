"""Train MambaOut on ImageNet-1k with the published recipe; the argument is the model.

python -m mambaout_jax prepare imagenet --tars DIR
python main.py --config=configs/imagenet.py:mambaout_tiny --workdir=runs/mambaout_tiny

| argument | parameters | drop path rate | published top-1 at 224 px |
|---|---|---|---|
| mambaout_femto | 7.30 M | 0.025 | 78.9 % |
| mambaout_kobe | 9.14 M | 0.025 | 80.0 % |
| mambaout_tiny | 26.55 M | 0.2 | 82.7 % |
| mambaout_small | 48.49 M | 0.4 | 84.1 % |
| mambaout_base | 84.81 M | 0.6 | 84.2 % |

Cost and result: not measured here yet. docs/recipe.md lists all hyperparameters and what may be changed. The
learning rate is constant within an epoch, as published; --config.optim.schedule=per_step changes it at every step.
Use --config.model.dtype=bfloat16 on TPUs. Measure how many data.num_workers a machine needs with
`python -m mambaout_jax bench-data --config=configs/imagenet.py:mambaout_tiny`.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config

DROP_PATH_RATES = {
    "mambaout_femto": 0.025,
    "mambaout_kobe": 0.025,
    "mambaout_tiny": 0.2,
    "mambaout_small": 0.4,
    "mambaout_base": 0.6,
}


def get_config(model: str) -> ConfigDict:
    """Return the experiment of a model: what differs from the defaults in docs/config.md."""
    if model not in DROP_PATH_RATES:
        raise ValueError(f"no published recipe for {model!r}; expected one of {', '.join(DROP_PATH_RATES)}")
    config = default_config()
    config.seed = 42
    config.num_epochs = 310
    config.batch_size = 4096
    config.microbatch_size = 128
    config.eval_batch_size = 1024
    config.log_every_steps = 52  # six lines an epoch of 312 steps

    config.data.name = "imagenet2012"
    config.data.auto_augment = "rand-m9-mstd0.5-inc1"
    config.data.crop_pct = 1.0
    config.data.num_workers = 32

    config.model.update(name=model, drop_path_rate=DROP_PATH_RATES[model])

    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.augment.mixup_group = 128
    config.augment.random_erasing_prob = 0.25

    config.optim.learning_rate = 4e-3
    config.optim.warmup_epochs = 20
    config.optim.cooldown_epochs = 10
    config.optim.schedule = "per_epoch"
    return config
