"""The named variants of VMamba.

Options and accuracies: github.com/MzeroMiko/VMamba at 2ed52ead, assets/performance.md and
classification/configs/vssm. The accuracies are those of the moving average of the weights, except for vmamba_tiny_v0.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mambaout_jax.models.family import Checkpoint, Variant


def _variant(
    options: Mapping[str, Any],
    depths: tuple[int, ...],
    width: int,
    top1: float,
    file: str,
    *,
    params: int,
    macs: int,
    drop_path: float,
    entry: str | None = None,
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> Variant:
    dims = tuple(width * 2**stage for stage in range(4))
    url = f"https://github.com/MzeroMiko/VMamba/releases/download/{file}.pth"
    return Variant(
        {"depths": depths, "dims": dims, **options},
        crop_pct=0.875,
        top1={224: top1},
        params=params,
        macs=macs,
        checkpoint=Checkpoint(url, None, entry=entry),
        recipe={"model.drop_path_rate": drop_path, **recipe},
    )


# The model of the first version of the paper.
_V0 = {
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": True,
    "forward_type": "v0",
    "mlp_ratio": 0.0,
    "patchembed_version": "v1",
    "downsample_version": "v1",
}
# s: ssm_ratio; l: blocks of the third stage.
_S1, _S2 = {"ssm_ratio": 1.0}, {"ssm_ratio": 2.0}

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vmamba_tiny_s1l8": _variant(
            _S1,
            (2, 2, 8, 2),
            96,
            82.6,
            "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264",
            params=30_249_064,
            macs=4_875_843_072,
            drop_path=0.2,
        ),
        "vmamba_small_s1l20": _variant(
            _S1,
            (2, 2, 20, 2),
            96,
            83.3,
            "%23v2cls/vssm1_small_0229s_ckpt_epoch_240",
            params=49_012_840,
            macs=8_568_897_024,
            drop_path=0.3,
        ),
        "vmamba_base_s1l20": _variant(
            _S1,
            (2, 2, 20, 2),
            128,
            83.8,
            "%23v2cls/vssm1_base_0229s_ckpt_epoch_225",
            params=86_614_504,
            macs=15_163_107_328,
            drop_path=0.5,
        ),
        "vmamba_tiny_s2l5": _variant(
            _S2,
            (2, 2, 5, 2),
            96,
            82.5,
            "%23v2cls/vssm_tiny_0230_ckpt_epoch_262",
            params=30_705_832,
            macs=4_824_588_288,
            drop_path=0.2,
        ),
        "vmamba_small_s2l15": _variant(
            _S2,
            (2, 2, 15, 2),
            96,
            83.6,
            "%23v2cls/vssm_small_0229_ckpt_epoch_222",
            params=50_147_752,
            macs=8_667_568_128,
            drop_path=0.3,
        ),
        "vmamba_base_s2l15": _variant(
            _S2,
            (2, 2, 15, 2),
            128,
            83.9,
            "%23v2cls/vssm_base_0229_ckpt_epoch_237",
            params=88_557_800,
            macs=15_294_668_800,
            drop_path=0.6,
        ),
        "vmamba_tiny_v0": _variant(
            _V0,
            (2, 2, 9, 2),
            96,
            82.2,
            "%23v0cls/vssmtiny_dp01_ckpt_epoch_292",
            params=22_893_448,
            macs=5_597_700_096,
            drop_path=0.2,
            entry="model",
            recipe={"optim.ema_decay": None},
        ),
        "vmamba_small_v0": _variant(
            _V0,
            (2, 2, 27, 2),
            96,
            83.5,
            "%23v0cls/vssmsmall_dp03_ckpt_epoch_238",
            params=44_417_416,
            macs=11_181_987_840,
            drop_path=0.3,
        ),
        "vmamba_base_v0": _variant(
            _V0,
            (2, 2, 27, 2),
            128,
            83.7,
            "%23v0cls/vssmbase_dp06_ckpt_epoch_241",
            params=76_254_056,
            macs=17_953_595_392,
            drop_path=0.6,
        ),
    }
)
