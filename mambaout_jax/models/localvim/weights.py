"""Parameter names of LocalVim in PyTorch codebases."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mambaout_jax.models.key_format import KeyFormat, Rule, same_names
from mambaout_jax.models.layers.rotation import rotary_buffers
from mambaout_jax.models.localvim.model import NUM_DIRECTIONS, grid_of, rope_grid_of


def _buffers(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the tables of the rotary position embedding, for `KeyFormat.buffers`."""
    if not options["rope"]:
        return {}
    grid = grid_of(options["img_size"], options["patch_size"])
    return rotary_buffers(grid, rope_grid_of(options["rope_size"], options["patch_size"]), options["embed_dim"])


def _remark(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Return a sentence if the A_log of a block differ: in the original, they are parameters over one tensor."""
    first = {key.removesuffix("_0"): value for key, value in tensors.items() if key.endswith(".A_log_0")}
    if all(
        np.array_equal(tensors[f"{name}_{index}"], value)
        for name, value in first.items()
        for index in range(1, NUM_DIRECTIONS)
    ):
        return None
    return (
        f"A_log_0 to A_log_{NUM_DIRECTIONS - 1} of a block differ; in the original code they share memory until the "
        "model is moved to a GPU: call model.cuda() before load_state_dict, which on a CPU leaves the last one in all"
    )


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
            "norm_f.*",
            "head.*",
        ),
        Rule("layers.#.mixer.attn.*.*", "layers.#.mixer.scan_gate.*.*"),
        Rule("layers.#.mixer.conv1d_#.*", "layers.#.mixer.branches.#.conv1d.*"),
        Rule("layers.#.mixer.x_proj_#.*", "layers.#.mixer.branches.#.x_proj.*"),
        Rule("layers.#.mixer.dt_proj_#.*", "layers.#.mixer.branches.#.dt_proj.*"),
        Rule("layers.#.mixer.D_#", "layers.#.mixer.branches.#.D"),
        Rule("layers.#.mixer.A_log_#", "layers.#.mixer.branches.#.A_log"),
    ),
    ignored=("rope.freqs_cos", "rope.freqs_sin"),  # tables of the rotary position embedding
    buffers=_buffers,
    remark=_remark,
)
