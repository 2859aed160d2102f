"""Test whether scikit-learn's handwritten digits need an SSM: short sequences, of 64 tokens and fewer.

python -m mambaout_jax study --dataset digits --seeds 3

All variants train for the same number of steps on the same batches. The model of this config is the baseline, without
an SSM; to train it alone: python main.py --config=configs/study/digits.py --workdir=runs/study-digits-conv

Cost and result: docs/study.md.
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
    config.num_epochs = 12
    config.batch_size = 64
    config.microbatch_size = config_dict.placeholder(int)
    config.eval_batch_size = 120
    config.eval_every_epochs = 12
    config.save_every_steps = config_dict.placeholder(int)
    config.log_every_steps = 14

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1

    config.data = data = ConfigDict()
    data.name = "digits"
    data.data_dir = config_dict.placeholder(str)
    data.train_split = "train"
    data.validation_split = "validation"
    data.eval_sets = config_dict.placeholder(str)
    data.pipeline = "exact"
    data.crop = "resize"
    data.crop_scale = (1.0, 1.0)
    data.crop_ratio = (1.0, 1.0)
    data.hflip_prob = 0.0
    data.interpolation = "bicubic"
    data.auto_augment = config_dict.placeholder(str)
    data.crop_pct = config_dict.placeholder(float)
    data.crop_mode = config_dict.placeholder(str)
    data.num_workers = 0
    data.on_bad_record = "raise"

    config.model = model = ConfigDict()
    model.name = "mambaout_femto"
    model.img_size = 32
    model.in_chans = 1
    model.depths = (1, 1, 2, 1)
    model.dims = (24, 48, 72, 96)
    model.kernel_size = 3  # the maps have 8, 4, 2 and 1 pixels a side
    model.drop_path_rate = 0.0
    model.drop_rate = 0.0
    model.dtype = "float32"
    model.scan_blocks = False
    model.remat = "none"

    config.augment = augment = ConfigDict()
    augment.pad = 4
    augment.rotate_degrees = 15.0
    augment.mixup_alpha = 0.0
    augment.cutmix_alpha = 0.0
    augment.mixup_prob = 0.0
    augment.mixup_switch_prob = 0.5
    augment.mixup_group = 16
    augment.random_erasing_prob = 0.0
    augment.label_smoothing = 0.1

    config.optim = optim = ConfigDict()
    optim.learning_rate = 2e-3
    optim.warmup_learning_rate = 1e-6
    optim.min_learning_rate = 1e-5
    optim.warmup_epochs = 2
    optim.cooldown_epochs = 0
    optim.schedule = "per_step"
    optim.weight_decay = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip_grad_norm = 1.0
    optim.ema_decay = 0.98

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
