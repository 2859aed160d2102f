"""Train MambaOut-Kobe on ImageNet-1k by the recipe that it was published with.

python -m mambaout_jax prepare imagenet --tars DIR
python main.py --config=configs/mambaout_kobe.py --workdir=runs/mambaout_kobe

Published: 80.0 % top-1 at 224 px, 9.14 M parameters. Cost and result: not measured here yet.
docs/recipe.md gives every number, its reference and what may be changed. The learning rate is held within an epoch, as
published; --config.optim.schedule=per_step moves it at every step. --config.model.dtype=bfloat16 is the choice for
TPUs. How many data.num_workers a machine needs is told by
`python -m mambaout_jax bench-data --config=configs/mambaout_kobe.py`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Return the experiment; docs/config.md explains each key."""
    config = ConfigDict()
    config.task = "classification"
    config.plugins = ()
    config.seed = 42
    config.resume = "same"
    config.init_from = config_dict.placeholder(str)
    config.init_head = "keep"
    config.num_epochs = 310
    config.batch_size = 4096
    config.microbatch_size = 128
    config.eval_batch_size = 1024
    config.eval_every_epochs = 1
    config.save_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 52  # six lines an epoch of 312 steps

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = "imagenet2012"
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.eval_sets = config_dict.placeholder(str)
    data.pipeline = "exact"
    data.crop = "random_resized"
    data.crop_scale = (0.08, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    data.hflip_prob = 0.5
    data.interpolation = "random"
    data.auto_augment = "rand-m9-mstd0.5-inc1"
    data.crop_pct = 1.0
    data.crop_mode = config_dict.placeholder(str)
    data.num_workers = 32
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "mambaout_kobe"
    model.img_size = 224
    model.drop_path_rate = 0.025
    model.drop_rate = 0.0
    model.dtype = "float32"
    model.scan_blocks = False
    model.remat = "none"

    config.augment = augment = ConfigDict()
    augment.pad = 0
    augment.rotate_degrees = 0.0
    augment.mixup_alpha = 0.8
    augment.cutmix_alpha = 1.0
    augment.mixup_prob = 1.0
    augment.mixup_switch_prob = 0.5
    augment.mixup_group = 128
    augment.random_erasing_prob = 0.25
    augment.label_smoothing = 0.1

    config.optim = optim = ConfigDict()
    optim.learning_rate = 4e-3
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-5
    optim.warmup_epochs = 20
    optim.cooldown_epochs = 10
    optim.schedule = "per_epoch"
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = config_dict.placeholder(float)
    optim.ema_decay = config_dict.placeholder(float)

    config.profile = profile = ConfigDict()
    profile.start_step = config_dict.placeholder(int)
    profile.num_steps = 5
    return config
