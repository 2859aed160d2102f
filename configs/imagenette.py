"""Train MambaOut-Femto on Imagenette: ten easy classes of ImageNet, 9,469 photographs to train on and 3,925 to test.

python -m mambaout_jax prepare imagenette/160px-v2
python main.py --config=configs/imagenette.py --workdir=runs/imagenette

The first command needs a network and the extra `prepare`. Cost and result: not measured yet; meant for one GPU or TPU
chip, where a batch of 128 images of 128 px fits.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Return the experiment; docs/config.md explains each key."""
    config = ConfigDict()
    config.task = "classification"
    config.plugins = ()
    config.seed = 0
    config.resume = "same"
    config.init_from = config_dict.placeholder(str)
    config.init_head = "keep"
    config.num_epochs = 100
    config.batch_size = 128
    config.microbatch_size = config_dict.placeholder(int)
    config.eval_batch_size = 128
    config.eval_every_epochs = 5
    config.save_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 73

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = "imagenette/160px-v2"
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.eval_sets = config_dict.placeholder(str)
    data.pipeline = "exact"
    data.crop = "random_resized"
    data.crop_scale = (0.25, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    data.hflip_prob = 0.5
    data.interpolation = "random"
    data.auto_augment = config_dict.placeholder(str)
    data.crop_pct = config_dict.placeholder(float)
    data.crop_mode = config_dict.placeholder(str)
    data.num_workers = 4
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "mambaout_femto"
    model.img_size = 128
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
    augment.mixup_group = 16
    augment.random_erasing_prob = 0.25
    augment.label_smoothing = 0.1

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-3
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-5
    optim.warmup_epochs = 10
    optim.cooldown_epochs = 0
    optim.schedule = "per_step"
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = config_dict.placeholder(float)
    optim.ema_decay = 0.999

    config.profile = profile = ConfigDict()
    profile.start_step = config_dict.placeholder(int)
    profile.num_steps = 5
    return config
