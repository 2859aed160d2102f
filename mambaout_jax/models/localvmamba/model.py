"""LocalVMamba: four stages of blocks that scan feature maps by rows, columns and windows.

Reference: Huang et al., LocalMamba: Visual State Space Model with Windowed Selective Scan, 2024;
github.com/hunto/LocalMamba at 75e5d1f0, classification/lib/models/local_vmamba.py. It is the first version of VMamba
with other directions, and with a gate on the channels of each scan.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax.numpy as jnp

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.local_scan import ChannelGate, LocalDirection, parse_directions
from mambaout_jax.models.layers.ss2d import SS2D
from mambaout_jax.models.layers.vss import (
    STAGE_OPTIONS,
    VSSM,
    Head,
    PatchEmbedding,
    PatchMerging,
    Stage,
    VSSBlock,
    check_stages,
)
from mambaout_jax.models.options import BLOCKS, COMMON, SCAN_IMPL

# Found by the authors' search.
TINY = (
    *("h h_flip w7 w7_flip", "h_flip v_flip w2 w2_flip"),
    *("h_flip v_flip w2_flip w7", "h_flip v v_flip w2"),
    "h h_flip v_flip w2_flip",
    "h_flip v_flip w2 w2_flip",
    "h w2_flip w7 w7_flip",
    "h h_flip v v_flip",
    "h v_flip w7 w7_flip",
    "h_flip v w2 w7_flip",
    "v v_flip w2 w7_flip",
    "h h_flip v_flip w2_flip",
    "v_flip w2_flip w7 w7_flip",
    *("h_flip v_flip w2_flip w7_flip", "h_flip v w7 w7_flip"),
)
SMALL = (
    *("h v v_flip w7_flip", "h h_flip v w7"),
    *("h_flip v v_flip w7", "h_flip v w2_flip w7"),
    "h_flip v w2_flip w7",
    "h_flip v_flip w2 w7_flip",
    "h_flip v v_flip w7",
    "h v v_flip w7",
    "h v v_flip w7",
    "h v v_flip w7_flip",
    "h h_flip v v_flip",
    "h v v_flip w2",
    "v v_flip w2_flip w7",
    "h h_flip v w2",
    "h_flip v v_flip w7_flip",
    "h h_flip v v_flip",
    "h v v_flip w7_flip",
    "h v v_flip w7_flip",
    "h h_flip v_flip w7",
    "h_flip v_flip w2_flip w7",
    "h_flip v v_flip w7_flip",
    "v v_flip w7 w7_flip",
    "h v v_flip w7_flip",
    "h_flip v v_flip w2",
    "h v v_flip w2_flip",
    "h h_flip v w7",
    "h h_flip w7 w7_flip",
    "h v_flip w2 w2_flip",
    "h v_flip w2 w7",
    "h v v_flip w7_flip",
    "h_flip v w2_flip w7",
    *("h_flip v_flip w7 w7_flip", "h v w7 w7_flip"),
)

# Names and defaults are those of the reference.
OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        **STAGE_OPTIONS,
        "depths": ConfigKey(tuple[int, ...], "1..1000", (2, 2, 9, 2), "blocks of each stage"),
        "directions": ConfigKey(
            tuple[str, ...],
            None,
            TINY,
            "the scans of each block, as in 'h v_flip w7 w7_flip': rows (h), columns (v) or windows (w and their "
            "side), reversed with _flip",
        ),
        "ssm_d_state": ConfigKey(int, "1..1024", 16, "states per scanned channel"),
        "ssm_ratio": ConfigKey(float, ">0..64", 2.0, "ratio of scanned channels to dim; at least 8 channels"),
        "ssm_conv_bias": ConfigKey(bool, None, True, "bias of the depthwise convolution"),
        "scan_impl": SCAN_IMPL,
    }
)


class LocalVMamba(VSSM):
    """LocalVMamba, with the options of `OPTIONS`.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        depths: Sequence[int],
        dims: Sequence[int],
        directions: Sequence[str],
        ssm_d_state: int,
        ssm_ratio: float,
        ssm_dt_rank: int | None,
        ssm_conv: int,
        ssm_conv_bias: bool,
        drop_path_rate: float,
        drop_rate: float,
        scan_impl: str,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        check_stages(depths, dims, ssm_conv)
        if len(directions) != sum(depths):
            raise ModelError(
                f"the length of directions is {len(directions)}; expected {sum(depths)}, an entry for each block of "
                f"depths {depths}"
            )
        if ssm_ratio * min(dims) < 8:
            raise ModelError(f"ssm_ratio {ssm_ratio} scans fewer than 8 channels of dims {dims}; expected a larger one")
        dtype = jnp.dtype(dtype)

        def block(dim: int, scans: Sequence[LocalDirection]) -> VSSBlock:
            op = SS2D(
                dim,
                ratio=ssm_ratio,
                directions=scans,
                d_state=ssm_d_state,
                dt_rank=ssm_dt_rank,
                kernel_size=ssm_conv,
                conv_bias=ssm_conv_bias,
                gated=True,
                scan_gate=ChannelGate(int(ssm_ratio * dim), dtype=dtype),
                impl=scan_impl,
                dtype=dtype,
            )
            return VSSBlock(dim, op, mlp_ratio=0.0, dtype=dtype)

        scans = iter(parse_directions(directions))
        super().__init__(
            PatchEmbedding(in_chans, dims[0], dtype=dtype),
            [
                Stage(
                    [block(dim, next(scans)) for _ in range(depth)],
                    PatchMerging(dim, after, dtype=dtype) if after else None,
                )
                for depth, dim, after in zip(depths, dims, (*dims[1:], None), strict=True)
            ],
            Head(dims[-1], num_classes, drop_rate=drop_rate, dtype=dtype),
            drop_path_rate=drop_path_rate,
            scan_blocks=scan_blocks,
            remat=remat,
        )
