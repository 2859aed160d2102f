"""Test whether Pathfinder needs an SSM: are two dots joined by one of several dashed curves?

python -m mambaout_jax prepare pathfinder
python -m mambaout_jax study --dataset pathfinder --seeds 3

64 px are 256 tokens in the first stage: long, as 6 D = 144 for its 24 channels (docs/analyze.md). 32 px, --dataset
pathfinder/32 --config.model.img_size=32, are 64 tokens: short, and only for a quick check whether the task can be
learned. With an accelerator use 1,024 tokens and more steps: --dataset pathfinder/128 --config.model.img_size=128
--config.num_epochs=100. The baseline alone:
python main.py --config=configs/study/pathfinder.py --workdir=runs/study-pathfinder-conv

Cost and result: docs/study.md, incomplete.
"""

from ml_collections import ConfigDict, config_dict


# One key a line.
def get_config() -> ConfigDict:
    """Return the experiment; docs/config.md has the meaning of each key."""
    config = ConfigDict()
    config.task = "classification"
    config.plugins = ()
    config.seed = 0
    config.resume = "same"
    config.init_from = config_dict.placeholder(str)
    config.init_head = "keep"
    config.num_epochs = 5
    config.batch_size = 128
    config.microbatch_size = config_dict.placeholder(int)
    config.eval_batch_size = 200
    config.eval_every_epochs = 5
    config.save_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 20

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = "pathfinder"
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.eval_sets = config_dict.placeholder(str)
    data.pipeline = "exact"
    data.crop = "resize"
    data.crop_scale = (1.0, 1.0)
    data.crop_ratio = (1.0, 1.0)
    data.hflip_prob = 0.5  # a flip does not change the label
    data.interpolation = "bicubic"
    data.auto_augment = config_dict.placeholder(str)
    data.crop_pct = config_dict.placeholder(float)
    data.crop_mode = config_dict.placeholder(str)
    data.num_workers = 0
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "mambaout_femto"
    model.img_size = 64
    model.in_chans = 1
    model.depths = (2, 2)
    model.dims = (24, 48)
    model.kernel_size = 3  # the maps have 16 and 8 pixels a side
    model.drop_path_rate = 0.0
    model.drop_rate = 0.0
    model.dtype = "float32"
    model.scan_blocks = False
    model.remat = "none"

    config.augment = augment = ConfigDict()
    augment.pad = 0
    augment.rotate_degrees = 0.0
    augment.mixup_alpha = 0.0
    augment.cutmix_alpha = 0.0
    augment.mixup_prob = 0.0
    augment.mixup_switch_prob = 0.5
    augment.mixup_group = 16
    augment.random_erasing_prob = 0.0
    augment.label_smoothing = 0.0

    config.optim = optim = ConfigDict()
    optim.learning_rate = 2e-3
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-5
    optim.warmup_epochs = 1
    optim.cooldown_epochs = 0
    optim.schedule = "per_step"
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = 1.0
    optim.ema_decay = 0.99

    config.study = get_study()

    config.profile = profile = ConfigDict()
    profile.start_step = config_dict.placeholder(int)
    profile.num_steps = 5
    return config


def get_study() -> ConfigDict:
    """Return the variants and the comparisons that they are in; docs/study.md has the meaning of each key."""
    study = ConfigDict()
    study.baseline = "conv"
    study.removed = ("ssm-causal", "ssm-bidirectional", "ssm-cross")
    study.matched = (*study.removed, "vit-full", "vit-causal")
    study.variants = variants = ConfigDict()
    variants.conv = {
        "title": "convolution alone",
        "has_ssm": False,
        "model": {"token_mixer": "conv", "scan_order": "causal"},
        "width": "dims",
    }
    for order in ("causal", "bidirectional", "cross"):
        variants[f"ssm-{order}"] = {
            "title": f"SSM ({order})",
            "has_ssm": True,
            "model": {"token_mixer": "conv_ssm", "scan_order": order},
            "width": "dims",
        }
    for attention in ("full", "causal"):
        variants[f"vit-{attention}"] = {
            "title": f"ViT ({attention})",
            "has_ssm": False,
            "model": {
                "name": "vit_tiny_patch16_224",
                "attention": attention,
                "num_heads": 4,
                "class_token": False,
                "global_pool": "avg",
            },
            "width": "embed_dim",
            "multiple_of": "num_heads",
            "fill": "mlp_ratio",
            "derived": {"patch_size": "first_stride", "depth": "num_blocks"},
        }
    return study
