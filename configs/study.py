"""Test whether a dataset (the argument) needs an SSM: train variants of a model with and without one.

python -m mambaout_jax study --dataset digits --seeds 3

All variants train for the same number of steps on the same batches. The model of the config is the baseline, without an
SSM; to train it alone: python main.py --config=configs/study.py:digits --workdir=runs/study-digits-conv

digits: scikit-learn's handwritten digits, short sequences of at most 64 tokens. Cost and result: docs/study.md.

pathfinder: are two dots joined by one of several dashed curves?

python -m mambaout_jax prepare pathfinder
python -m mambaout_jax study --dataset pathfinder --seeds 3

Images of 64 px give 256 tokens in the first stage. That is long: the threshold 6 D is 144 for 24 channels
(docs/analyze.md). Images of 32 px (--dataset pathfinder/32 --config.model.img_size=32) give 64 tokens, which is short;
use them only to check that the task can be learned. With an accelerator use 1,024 tokens and more steps: --dataset
pathfinder/128 --config.model.img_size=128 --config.num_epochs=100. Cost and result: docs/study.md, incomplete.

photos: MambaOut-Femto at 96 px, on your own folder or any TFDS dataset of images with labels.

python -m mambaout_jax prepare folder photos
python -m mambaout_jax study --dataset photos --config=configs/study.py:photos --config.num_epochs=100

For larger images and models change config.model.img_size, dims and depths; all variants follow. Cost and result: they
depend on the images; nothing was measured here.

scenes_segmentation: the class of each pixel, from UperNet on the same variants. Images of 128 px give 1,024 tokens in
the first stage. That is long: the threshold 6 D is 96 for 16 channels. In scenes/cue_128, the class of a digit is shown
in a corner of the image.

python -m mambaout_jax prepare scenes/cue_128
python -m mambaout_jax study --dataset scenes/cue_128 --task segmentation --seeds 3

Cost: 5 to 20 minutes per run on one core. Result: docs/study.md, incomplete.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config(name: str) -> ConfigDict:
    """Return an experiment: what differs from the defaults in docs/config.md, and the variants."""
    if name not in EXPERIMENTS:
        raise ValueError(
            f"no experiment for {name!r}; expected one of {', '.join(EXPERIMENTS)}: for your own photographs use "
            "--config=study:photos, and for anything else your own file"
        )
    dataset, task, set_up, get_variants = EXPERIMENTS[name]
    config = default_config(task)
    config.data.name = dataset
    config.optim.clip_grad_norm = 1.0
    set_up(config)
    with config.unlocked():
        config.study = get_variants()
    return config


def _digits(config: ConfigDict) -> None:
    config.num_epochs = 12
    config.batch_size = 64
    config.eval_batch_size = 120
    config.eval_every_epochs = 12
    config.log_every_steps = 14
    _resize(config.data)
    config.data.hflip_prob = 0.0
    config.model.update(
        name="mambaout_femto",
        img_size=32,
        in_chans=1,
        depths=(1, 1, 2, 1),
        dims=(24, 48, 72, 96),
        kernel_size=3,  # the maps have 8, 4, 2 and 1 pixels a side
    )
    config.augment.pad = 4
    config.augment.rotate_degrees = 15.0
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 2
    config.optim.ema_decay = 0.98


def _pathfinder(config: ConfigDict) -> None:
    config.num_epochs = 5
    config.batch_size = 128
    config.eval_batch_size = 200
    config.eval_every_epochs = 5
    config.log_every_steps = 20
    _resize(config.data)
    config.data.hflip_prob = 0.5  # a flip does not change the label
    config.model.update(
        name="mambaout_femto",
        img_size=64,
        in_chans=1,
        depths=(2, 2),
        dims=(24, 48),
        kernel_size=3,  # the maps have 16 and 8 pixels a side
    )
    config.augment.label_smoothing = 0.0
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 1
    config.optim.ema_decay = 0.99


def _photos(config: ConfigDict) -> None:
    config.num_epochs = 50
    config.batch_size = 64
    config.eval_every_epochs = 10
    config.log_every_steps = 10
    config.data.crop_scale = (0.35, 1.0)
    config.data.num_workers = 4
    config.model.update(
        name="mambaout_femto", img_size=96, depths=(2, 2, 6, 2), dims=(48, 96, 192, 288), drop_path_rate=0.05
    )
    config.augment.random_erasing_prob = 0.25
    config.optim.ema_decay = 0.999


def _scenes_segmentation(config: ConfigDict) -> None:
    config.data.name = "scenes/cue_128"
    config.num_epochs = 4
    config.batch_size = 4
    config.eval_batch_size = 20
    config.eval_every_epochs = 4
    config.log_every_steps = 250
    config.data.box = (128, 128)
    config.data.box_scale = (1.0, 1.0)
    config.data.cat_max_ratio = 1.0
    config.data.hflip_prob = 0.0  # mirrored digits are not valid digits
    config.data.photometric = False
    config.model.update(
        name="upernet_mambaout_femto",
        img_size=128,
        depths=(1, 1, 2, 1),
        dims=(16, 32, 64, 128),
        kernel_size=3,
        channels=16,
        auxiliary_channels=16,
        classifier_std=0.25,
        drop_rate=0.0,
    )
    config.optim.learning_rate = 5e-3
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.99


def _resize(data: ConfigDict) -> None:
    data.crop = "resize"
    data.interpolation = "bicubic"


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


def get_segmentation_study() -> ConfigDict:
    """Return the variants of `get_study` as backbones of UperNet, compared at equal numbers of parameters only."""
    study = get_study()
    study.removed = ()
    for name, variant in study.variants.items():
        if name.startswith("vit"):
            variant.model.name = "upernet_vit_tiny_patch16_224"
            variant.model.patch_size = 16  # the feature maps have the strides of MambaOut then
            del variant.derived["patch_size"]
    return study


# By name: dataset that selects it, task, settings, variants. Messages recommend the last one of a task for the user's
# own photographs.
EXPERIMENTS = {
    "digits": ("digits", "classification", _digits, get_study),
    "pathfinder": ("pathfinder", "classification", _pathfinder, get_study),
    "photos": ("photos", "classification", _photos, get_study),
    "scenes_segmentation": ("scenes", "segmentation", _scenes_segmentation, get_segmentation_study),
}
