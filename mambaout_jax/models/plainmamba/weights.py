"""Parameter names of PlainMamba in its own repository."""

from mambaout_jax.models.key_format import KeyFormat, Rule, batch_counters
from mambaout_jax.models.plainmamba.model import MAX_CONVS

# Convolution, norm and activation of each are consecutive entries of one nn.Sequential.
_CONVS = tuple(
    Rule(f"backbone.patch_embed.convs.{3 * index + offset}.*", f"patch_embed.convs.{index}.{name}.*")
    for index in range(MAX_CONVS)
    for offset, name in enumerate(("conv", "norm"))
)

# github.com/ChenhongyiYang/PlainMamba at 0975a1d0, an ImageClassifier of mmcls.
ORIGINAL = KeyFormat(
    "plainmamba",
    (
        Rule("backbone.pos_embed", "pos_embed"),
        Rule("backbone.patch_embed.stem.0.*", "patch_embed.stem.conv.*"),
        Rule("backbone.patch_embed.stem.1.*", "patch_embed.stem.norm.*"),
        *_CONVS,
        Rule("backbone.patch_embed.projection.*", "patch_embed.proj.*"),
        Rule("backbone.layers.#.norm.*", "blocks.#.norm.*"),
        Rule("backbone.layers.#.mamba.in_proj.*", "blocks.#.mixer.in_proj.*"),
        Rule("backbone.layers.#.mamba.conv2d.*", "blocks.#.mixer.conv2d.*"),
        Rule("backbone.layers.#.mamba.x_proj.*", "blocks.#.mixer.x_proj.*"),
        Rule("backbone.layers.#.mamba.dt_proj.*", "blocks.#.mixer.dt_proj.*"),
        Rule("backbone.layers.#.mamba.out_proj.*", "blocks.#.mixer.out_proj.*"),
        Rule("backbone.layers.#.mamba.*", "blocks.#.mixer.*"),  # A_log, D and direction_Bs
        Rule("backbone.layers.#.dw.0.*", "blocks.#.dw.conv.*"),
        Rule("backbone.layers.#.dw.1.*", "blocks.#.dw.norm.*"),
        Rule("backbone.ln1.*", "norm.*"),
        Rule("head.fc.*", "head.*"),
    ),
    # Training with a moving average saves it as the parameters, and what it averages under ema_*.
    ignored=("**.num_batches_tracked", "ema_*"),
    buffers=batch_counters,
)
