"""Find the brightest pixels of handwritten digits: whole runs of the toy take seconds.

python main.py --config=tests/toy/config.py --workdir=runs/toy
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "spots"
    config.plugins = ("tests.toy.plugin",)
    config.seed = 0
    config.resume = "same"
    config.init_from = config_dict.placeholder(str)
    config.init_head = "keep"
    config.num_epochs = 2
    config.batch_size = 96
    config.microbatch_size = 24
    config.eval_batch_size = 100
    config.eval_every_epochs = 2
    config.save_every_steps = 5
    config.log_every_steps = 2

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = "digits"
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.num_workers = 0
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "spotter_small"
    model.img_size = 32
    model.in_chans = 1
    model.dim = 8
    model.drop_rate = 0.1
    model.dtype = "float32"

    config.spots = spots = ConfigDict()
    spots.negatives = 0.05
    spots.flip_prob = 0.5

    config.optim = optim = ConfigDict()
    optim.learning_rate = 3e-2
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-5
    optim.warmup_epochs = 1
    optim.cooldown_epochs = 0
    optim.schedule = "per_step"
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = config_dict.placeholder(float)
    optim.ema_decay = 0.9

    config.profile = profile = ConfigDict()
    profile.start_step = config_dict.placeholder(int)
    profile.num_steps = 5
    return config
