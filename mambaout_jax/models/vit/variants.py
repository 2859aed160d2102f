"""The named Vision Transformers. Options and accuracies: timm 1.0.31, deit.py and vision_transformer.py."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _deit(name: str) -> Checkpoint:
    """Return the weights that DeiT's authors published; the name ends with the beginning of their digest."""
    url = f"https://dl.fbaipublicfiles.com/deit/{name}.pth"
    return Checkpoint(url, "Apache-2.0", sha256=name.rpartition("-")[2])


_TINY = {"embed_dim": 192, "num_heads": 3}
_SMALL = {"embed_dim": 384, "num_heads": 6}
_BASE = {"embed_dim": 768, "num_heads": 12}
# The images that Google's own weights, which have these names, were trained on.
_GOOGLE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9}

# DeiT comes first: its weights are published as files without a name.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "deit_tiny_patch16_224": Variant(
            _TINY,
            crop_pct=0.9,
            top1={224: 72.2},
            params=5_717_416,
            macs=1_253_683_200,
            checkpoint=_deit("deit_tiny_patch16_224-a1311bcf"),
        ),
        "deit_small_patch16_224": Variant(
            _SMALL,
            crop_pct=0.9,
            top1={224: 79.8},
            params=22_050_664,
            macs=4_598_882_304,
            checkpoint=_deit("deit_small_patch16_224-cd65a155"),
        ),
        "deit_base_patch16_224": Variant(
            _BASE,
            crop_pct=0.9,
            top1={224: 81.8},
            params=86_567_656,
            macs=17_563_828_224,
            checkpoint=_deit("deit_base_patch16_224-b5f2ef4d"),
        ),
        "vit_tiny_patch16_224": Variant(_TINY, **_GOOGLE, params=5_717_416, macs=1_253_683_200),
        "vit_small_patch16_224": Variant(_SMALL, **_GOOGLE, params=22_050_664, macs=4_598_882_304),
        "vit_base_patch16_224": Variant(_BASE, **_GOOGLE, params=86_567_656, macs=17_563_828_224),
    }
)
