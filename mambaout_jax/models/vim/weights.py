"""Parameter names of Vim in PyTorch codebases."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names
from mambaout_jax.models.layers.rotation import rotary_buffers


def _branch(name: str, suffix: str, decay: str) -> tuple[Rule, ...]:
    """Build the rules of one direction of the scan."""
    return (
        Rule(f"layers.#.mixer.conv1d{suffix}.*", f"layers.#.mixer.{name}.conv1d.*"),
        Rule(f"layers.#.mixer.x_proj{suffix}.*", f"layers.#.mixer.{name}.x_proj.*"),
        Rule(f"layers.#.mixer.dt_proj{suffix}.*", f"layers.#.mixer.{name}.dt_proj.*"),
        Rule(f"layers.#.mixer.{decay}", f"layers.#.mixer.{name}.A_log"),
        Rule(f"layers.#.mixer.D{suffix}", f"layers.#.mixer.{name}.D"),
    )


def _buffers(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the tables of the rotary position embedding, for `KeyFormat.buffers`."""
    grid = tuple(side // options["patch_size"] for side in options["img_size"])
    return rotary_buffers(grid, grid, options["embed_dim"]) if options["rope"] else {}


# github.com/hustvl/Vim at dd0358ad, vim/models_mamba.py.
ORIGINAL = KeyFormat(
    "vim",
    (
        *same_names(
            "cls_token",
            "cls_token_head",
            "cls_token_tail",
            "pos_embed",
            "patch_embed.proj.*",
            "layers.#.norm.*",
            "layers.#.mixer.in_proj.*",
            "layers.#.mixer.out_proj.*",
            "layers.#.mixer.gamma",
            "norm_f.*",
            "head.*",
        ),
        *_branch("forward", "", "A_log"),
        *_branch("backward", "_b", "A_b_log"),
    ),
    ignored=("rope.freqs_cos", "rope.freqs_sin"),  # tables of the rotary position embedding
    buffers=_buffers,
)
