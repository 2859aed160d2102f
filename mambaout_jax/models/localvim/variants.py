"""The named variants of LocalVim. Options and accuracies: github.com/hunto/LocalMamba at 75e5d1f0."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _original(name: str) -> Checkpoint:
    """Return the weights that the authors published, whose license they do not state."""
    return Checkpoint(f"https://github.com/hunto/LocalMamba/releases/download/v1.0.0/{name}.ckpt", None)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "localvim_tiny": Variant(
            {},
            crop_pct=0.875,
            top1={224: 76.2},
            checkpoint=_original("local_vim_tiny"),
            params=7_994_152,
            macs=2_109_328_896,
        ),
        # The authors link the file of another model. Of the two definitions in their code, the second one applies.
        "localvim_small": Variant(
            {"embed_dim": 384, "directions": ("h h_flip w2 w2_flip",) * 20},
            crop_pct=0.875,
            top1={224: 81.1},
            recipe=None,  # the recipe is stated for localvim_tiny alone
            params=27_783_784,
            macs=6_247_652_352,
        ),
        "localvim_tiny_middle_cls_token": Variant(
            {"class_token": True, "rope": False},
            crop_pct=0.875,
            top1={224: 77.8},
            checkpoint=_original("local_vim_tiny_middle_cls_token"),
            recipe=None,
            params=7_994_536,
            macs=2_119_927_296,
        ),
    }
)
