"""Train UperNet on ADE20K with the recipe of the MambaOut paper, which is that of Swin in mmsegmentation.

python -m mambaout_jax prepare ade20k --zip ADEChallengeData2016.zip
python main.py --config=configs/ade20k.py:mambaout_tiny --workdir=runs/ade20k --config.init_from=mambaout_tiny.pth

| argument | parameters | drop path rate | published mIoU, single scale |
|---|---|---|---|
| mambaout_tiny | 54.05 M | 0.3 | 47.4 % |
| mambaout_small | 75.99 M | 0.4 | 49.5 % |
| mambaout_base | 112.20 M | 0.6 | 49.6 % |
| vmamba_tiny_s1l8 | 62 M | 0.2 | 47.9 % |
| vmamba_small_s2l15 | 82 M | 0.3 | 50.6 % |
| vmamba_base_s2l15 | 122 M | 0.6 | 51.0 % |

Cost and result: not measured here yet. The learning rate is 1e-4 for MambaOut and 6e-5 for VMamba. The drop path rate
of mambaout_small is published as 0.3 and as 0.4; those of VMamba are assumed to be the ones of its detectors. Without
init_from, the backbone is random.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config

# Learning rate, drop path rate and epsilon of the output norms.
RECIPES = {
    "mambaout_tiny": (1e-4, 0.3, 1e-6),
    "mambaout_small": (1e-4, 0.4, 1e-6),
    "mambaout_base": (1e-4, 0.6, 1e-6),
    "vmamba_tiny_s1l8": (6e-5, 0.2, 1e-5),
    "vmamba_small_s2l15": (6e-5, 0.3, 1e-5),
    "vmamba_base_s2l15": (6e-5, 0.6, 1e-5),
}


def get_config(backbone: str = "mambaout_tiny") -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md."""
    if backbone not in RECIPES:
        raise ValueError(f"{backbone!r} has no recipe; expected one of {', '.join(RECIPES)}")
    learning_rate, drop_path_rate, eps = RECIPES[backbone]
    config = default_config("segmentation")
    config.num_steps = 160_000
    config.batch_size = 16
    config.eval_batch_size = 16
    config.eval_every_epochs = 12  # about every 15,000 steps
    config.save_every_steps = 2_000

    config.data.name = "ade20k"
    config.model.update(name=f"upernet_{backbone}", img_size=512, drop_path_rate=drop_path_rate, output_norm_eps=eps)

    config.optim.schedule = "linear"
    config.optim.learning_rate = learning_rate
    config.optim.warmup_learning_rate = 1e-6 * learning_rate
    config.optim.warmup_steps = 1_500
    config.optim.min_learning_rate = 0.0
    config.optim.weight_decay = 0.01
    config.optim.decay_of = "all_but_norms"
    return config
