"""Parameter names of LocalVim in PyTorch codebases."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names
from mambaout_jax.models.layers.rotation import rotary_buffers
from mambaout_jax.models.localvim.model import grid_of, rope_grid_of


def _buffers(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the tables of the rotary position embedding, for `KeyFormat.buffers`."""
    if not options["rope"]:
        return {}
    grid = grid_of(options["img_size"], options["patch_size"])
    return rotary_buffers(grid, rope_grid_of(options["rope_size"], options["patch_size"]), options["embed_dim"])


# github.com/hunto/LocalMamba at 75e5d1f0, classification/lib/models/local_vim.py.
ORIGINAL = KeyFormat(
    "localvim",
    (
        *same_names(
            "cls_token",
            "pos_embed",
            "patch_embed.proj.*",
            "layers.#.norm.*",
            "layers.#.mixer.in_proj.*",
            "layers.#.mixer.out_proj.*",
            "layers.#.mixer.attn.*.*",
            "norm_f.*",
            "head.*",
        ),
        Rule("layers.#.mixer.conv1d_#.*", "layers.#.mixer.branches.#.conv1d.*"),
        Rule("layers.#.mixer.x_proj_#.*", "layers.#.mixer.branches.#.x_proj.*"),
        Rule("layers.#.mixer.dt_proj_#.*", "layers.#.mixer.branches.#.dt_proj.*"),
        Rule("layers.#.mixer.D_#", "layers.#.mixer.branches.#.D"),
        Rule("layers.#.mixer.A_log_#", "layers.#.mixer.branches.#.A_log"),
    ),
    ignored=("rope.freqs_cos", "rope.freqs_sin"),  # tables of the rotary position embedding
    buffers=_buffers,
)
