"""The named variants of Vim. Options and accuracies: github.com/hustvl/Vim at dd0358ad, README.md and vim/scripts."""

from collections.abc import Mapping
from types import MappingProxyType

from mambaout_jax.models.family import Checkpoint, Variant


def _weights(repository: str, file: str, license: str | None = "Apache-2.0") -> Checkpoint:
    # vim/main.py saves raw weights and a moving average when the accuracy of the raw ones is the best so far.
    url = f"https://huggingface.co/hustvl/{repository}/resolve/main/{file}.pth"
    return Checkpoint(url, license, entry="model")


_SMALL = {"embed_dim": 384}
# Fine-tuned with patches that overlap; their weights have the shapes of larger images at the stride of the others. The
# recipes are vim/scripts/ft-vim-t.sh and ft-vim-s.sh: 30 epochs from the weights of the others, batch size 1024, a
# constant learning rate of 1e-5 (5e-6 for 512 images), weight decay 1e-8, no drop path.
_PLUS = {"stride": 8}

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vim_tiny": Variant(
            {},
            crop_pct=0.875,
            top1={224: 76.1},
            checkpoint=_weights("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc"),
            params=7_148_008,
            macs=1_804_703_232,
        ),
        "vim_small": Variant(
            _SMALL,
            crop_pct=0.875,
            top1={224: 80.5},
            checkpoint=_weights("Vim-small-midclstok", "vim_s_midclstok_80p5acc"),
            recipe={
                "batch_size": 512,
                "augment.mixup_group": 64,
                "optim.weight_decay": 0.05,
                "model.drop_path_rate": 0.05,
            },
            params=25_796_584,
            macs=5_875_215_360,
        ),
        "vim_base": Variant(
            {"embed_dim": 768},
            crop_pct=0.875,
            top1={224: 81.9},
            checkpoint=_weights("Vim-base-midclstok", "vim_b_midclstok_81p9acc", license=None),
            recipe=None,  # the repository has no script for it
            params=97_598_440,
            macs=20_813_666_304,
        ),
        "vim_tiny_plus": Variant(
            _PLUS,
            crop_pct=0.875,
            top1={224: 78.3},
            checkpoint=_weights("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc"),
            recipe=None,
            params=7_250_344,
            macs=6_687_358_464,
        ),
        "vim_small_plus": Variant(
            {**_SMALL, **_PLUS},
            crop_pct=0.875,
            top1={224: 81.6},
            checkpoint=_weights("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc"),
            recipe=None,
            params=26_001_256,
            macs=21_770_861_568,
        ),
    }
)
