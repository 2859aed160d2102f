"""Find the brightest pixels of handwritten digits: whole runs of the toy take seconds.

python main.py --config=tests/toy/config.py --workdir=runs/toy
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    config = default_config("spots", plugins=("tests.toy.plugin",))
    config.num_epochs = 2
    config.batch_size = 96
    config.microbatch_size = 24
    config.eval_batch_size = 100
    config.eval_every_epochs = 2
    config.save_every_steps = 5
    config.log_every_steps = 2
    config.data.name = "digits"
    config.model.update(name="spotter_small", img_size=32, in_chans=1, dim=8, drop_rate=0.1)
    config.optim.learning_rate = 3e-2
    config.optim.warmup_epochs = 1
    config.optim.ema_decay = 0.9
    return config
