"""Parameter names of MambaVision in PyTorch codebases."""

from mambaout_jax.models.key_format import KeyFormat, Rule, batch_counters, same_names

# The published checkpoints. They have no LayerScale in the first two stages; its name extends theirs.
ORIGINAL = KeyFormat(
    "mambavision",
    (
        Rule("patch_embed.conv_down.0.*", "stem.conv1.*"),
        Rule("patch_embed.conv_down.1.*", "stem.norm1.*"),
        Rule("patch_embed.conv_down.3.*", "stem.conv2.*"),
        Rule("patch_embed.conv_down.4.*", "stem.norm2.*"),
        Rule("levels.0.downsample.reduction.0.*", "stages.1.downsample.conv.*"),
        Rule("levels.1.downsample.reduction.0.*", "stages.2.downsample.conv.*"),
        Rule("levels.2.downsample.reduction.0.*", "stages.3.downsample.conv.*"),
        Rule("levels.#.blocks.#.conv1.*", "stages.#.blocks.#.conv1.*"),
        Rule("levels.#.blocks.#.conv2.*", "stages.#.blocks.#.conv2.*"),
        Rule("levels.#.blocks.#.gamma", "stages.#.blocks.#.ls.gamma"),
        Rule("levels.#.blocks.#.gamma_1", "stages.#.blocks.#.ls1.gamma"),
        Rule("levels.#.blocks.#.gamma_2", "stages.#.blocks.#.ls2.gamma"),
        Rule("levels.#.blocks.#.norm1.*", "stages.#.blocks.#.norm1.*"),
        Rule("levels.#.blocks.#.norm2.*", "stages.#.blocks.#.norm2.*"),
        Rule("levels.#.blocks.#.mlp.fc1.*", "stages.#.blocks.#.mlp.fc1.*"),
        Rule("levels.#.blocks.#.mlp.fc2.*", "stages.#.blocks.#.mlp.fc2.*"),
        Rule("levels.#.blocks.#.mixer.qkv.*", "stages.#.blocks.#.mixer.qkv.*"),
        Rule("levels.#.blocks.#.mixer.proj.*", "stages.#.blocks.#.mixer.proj.*"),
        Rule("levels.#.blocks.#.mixer.in_proj.*", "stages.#.blocks.#.mixer.in_proj.*"),
        Rule("levels.#.blocks.#.mixer.conv1d_x.*", "stages.#.blocks.#.mixer.conv1d_x.*"),
        Rule("levels.#.blocks.#.mixer.conv1d_z.*", "stages.#.blocks.#.mixer.conv1d_z.*"),
        Rule("levels.#.blocks.#.mixer.x_proj.*", "stages.#.blocks.#.mixer.ssm.x_proj.*"),
        Rule("levels.#.blocks.#.mixer.dt_proj.*", "stages.#.blocks.#.mixer.ssm.dt_proj.*"),
        Rule("levels.#.blocks.#.mixer.A_log", "stages.#.blocks.#.mixer.ssm.A_log"),
        Rule("levels.#.blocks.#.mixer.D", "stages.#.blocks.#.mixer.ssm.D"),
        Rule("levels.#.blocks.#.mixer.out_proj.*", "stages.#.blocks.#.mixer.out_proj.*"),
        *same_names("norm.*", "head.*"),
    ),
    ignored=("**.num_batches_tracked",),
    buffers=batch_counters,
)
