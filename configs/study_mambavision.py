"""Compare the token mixers and the hybrid patterns of a small MambaVision on scikit-learn's digits.

python -m mambaout_jax study --dataset digits --config=configs/study_mambavision.py --seeds 3

The baseline has windows with attention in all blocks of the last two stages, and no SSM. The variants are matched to
its number of parameters; they differ in the mixer and in the blocks that have it instead of attention. With the
published settings, the mixer concatenates its branches and attention is in the last half of the blocks. To train the
baseline alone:
python main.py --config=configs/study_mambavision.py --workdir=runs/study-mambavision

The paper compares these on ImageNet-1k. Digits at 64 px have 16 tokens in the third stage and 4 in the last, so this
only checks that all variants train, and predicts nothing for larger images. Cost and result: not measured here yet.
"""

from ml_collections import ConfigDict

from mambaout_jax.run.config import default_config


def get_config() -> ConfigDict:
    """Return the experiment: what differs from the defaults in docs/config.md, and the variants."""
    config = default_config()
    config.num_epochs = 12
    config.batch_size = 64
    config.eval_batch_size = 120
    config.eval_every_epochs = 12
    config.log_every_steps = 14

    config.data.name = "digits"
    config.data.crop = "resize"
    config.data.interpolation = "bicubic"
    config.data.hflip_prob = 0.0

    config.model.update(
        name="mambavision_t",
        img_size=64,
        in_chans=1,
        dim=16,
        in_dim=4,
        depths=(1, 1, 4, 2),
        num_heads=(1, 1, 4, 8),
        window_size=(8, 8, 4, 2),  # the maps of the last two stages
    )

    config.augment.pad = 4
    config.augment.rotate_degrees = 15.0

    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 2
    config.optim.clip_grad_norm = 1.0
    config.optim.ema_decay = 0.98
    with config.unlocked():
        config.study = get_study()
    return config


def get_study() -> ConfigDict:
    """Return the variants and the comparisons that they are in; docs/study.md has the meaning of each key."""
    study = ConfigDict()
    study.variants = variants = ConfigDict()
    study.baseline = "attention"
    variants.attention = _variant("attention alone", has_ssm=False, attention_blocks=1000)
    variants.concat = _variant("published")
    variants.gated = _variant("branches multiplied", token_mixer="gated")
    variants.conv = _variant("one convolution", token_mixer="conv")
    variants.causal_conv = _variant("one causal convolution", token_mixer="causal_conv")
    variants.first = _variant("attention first", attention_pattern="first")
    variants.alternating = _variant("attention alternating", attention_pattern="alternating")
    variants.last_block = _variant("attention in the last block", attention_blocks=1)
    variants.mixers = _variant("mixers alone", attention_blocks=0)
    study.removed = ("concat",)
    study.matched = tuple(name for name in variants if name != study.baseline)
    return study


def _variant(title: str, *, has_ssm: bool = True, **options: str | int) -> dict:
    """Return a variant of the baseline, whose width is a multiple of that of the stem."""
    published = {"token_mixer": "concat", "attention_pattern": "last", "attention_blocks": None}
    return {
        "title": title,
        "has_ssm": has_ssm,
        "model": {**published, **options},
        "width": "dim",
        "multiple_of": "in_dim",
        "fill": "mlp_ratio",
    }
