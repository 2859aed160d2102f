"""The named variants of Vim. Options and accuracies: github.com/hustvl/Vim at dd0358ad, README.md and vim/scripts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mambaout_jax.models.family import Checkpoint, Variant


def _variant(options: Mapping[str, Any], top1: float, repository: str, file: str, licence: str | None) -> Variant:
    url = f"https://huggingface.co/hustvl/{repository}/resolve/main/{file}.pth"
    return Variant(options, crop_pct=0.875, top1={224: top1}, checkpoint=Checkpoint(url, licence))


_SMALL = {"embed_dim": 384}
# Fine-tuned with patches that overlap; their weights have the shapes of larger images at the stride of the others.
_PLUS = {"stride": 8}

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vim_tiny": _variant({}, 76.1, "Vim-tiny-midclstok", "vim_t_midclstok_76p1acc", "Apache-2.0"),
        "vim_small": _variant(_SMALL, 80.5, "Vim-small-midclstok", "vim_s_midclstok_80p5acc", "Apache-2.0"),
        "vim_base": _variant({"embed_dim": 768}, 81.9, "Vim-base-midclstok", "vim_b_midclstok_81p9acc", None),
        "vim_tiny_plus": _variant(_PLUS, 78.3, "Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc", "Apache-2.0"),
        "vim_small_plus": _variant(
            {**_SMALL, **_PLUS}, 81.6, "Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc", "Apache-2.0"
        ),
    }
)
