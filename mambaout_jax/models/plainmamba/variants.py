"""The named variants of PlainMamba.

Options, accuracies, weights and training: github.com/ChenhongyiYang/PlainMamba at 0975a1d0, README.md and
plain_mamba_configs.
"""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _published(name: str) -> Checkpoint:
    return Checkpoint(f"https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/{name}.pth", None)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "plainmamba_l1": Variant(
            {"embed_dim": 192, "depth": 24, "num_convs": 1, "layers_with_dwconv": (0,)},
            crop_pct=0.875,
            top1={224: 77.9},
            checkpoint=_published("l1"),
            recipe={"optim.warmup_epochs": 15, "optim.clip_grad_norm": 5.0, "optim.ema_decay": None},
            params=7_551_656,
            macs=3_012_897_024,
        ),
        "plainmamba_l2": Variant(
            {"embed_dim": 384, "depth": 24, "num_convs": 2},
            crop_pct=0.875,
            top1={224: 81.6},
            checkpoint=_published("l2"),
            params=26_145_832,
            macs=8_074_705_920,
        ),
        "plainmamba_l3": Variant(
            {"embed_dim": 448, "depth": 36, "num_convs": 2},
            crop_pct=0.875,
            top1={224: 82.3},
            checkpoint=_published("l3"),
            recipe={
                "batch_size": 1024,
                "optim.learning_rate": 1e-3,
                "optim.warmup_learning_rate": 1e-6,
                "optim.min_learning_rate": 1e-5,
                "model.drop_path_rate": 0.4,
            },
            params=50_956_456,
            macs=14_432_972_288,
        ),
    }
)
