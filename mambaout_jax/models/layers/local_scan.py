"""Windowed scan orders of a feature map, and the gate that weights each of them.

Reference: Huang et al., LocalMamba: Visual State Space Model with Windowed Selective Scan, 2024;
github.com/hunto/LocalMamba at 75e5d1f0, classification/lib/models/mamba.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.windows import merge_windows, split_windows
from mambaout_jax.ops import gelu


class LocalDirection(NamedTuple):
    """A direction of a scan: row by row, column by column, or window by window.

    Args:
        columns: column by column.
        window: side of the windows, which are scanned row by row, as are the pixels of each; None for no windows.
        flip: from the last pixel to the first.
    """

    columns: bool
    window: int | None
    flip: bool

    def sequence(self, x: Float[Array, "b h w c"]) -> Float[Array, "b l c"]:
        """Return the pixels of a map in the order of the scan.

        If the windows do not tile the map, it is padded with zeros at the bottom and right. The zeros are in the
        sequence, and come first in a flipped one.
        """
        b, *_, c = x.shape
        if self.window is not None:
            x = split_windows(x, self.window)
        elif self.columns:
            x = x.swapaxes(1, 2)
        x = x.reshape(b, -1, c)
        return jnp.flip(x, 1) if self.flip else x

    def feature_map(self, y: Float[Array, "b l c"], height: int, width: int) -> Float[Array, "b h w c"]:
        """Return the map of a sequence, without its padding: the inverse of `sequence`.

        For columns, this is the inverse only on square maps. On others the reference reads the sequence column by
        column as a map of `width` rows and `height` columns, and reshapes that to (height, width); the same is done
        here so that published weights give the same logits.
        """
        b, _, c = y.shape
        y = jnp.flip(y, 1) if self.flip else y
        if self.columns:
            return y.reshape(b, height, width, c).swapaxes(1, 2).reshape(b, height, width, c)
        if self.window is None:
            return y.reshape(b, height, width, c)
        return merge_windows(y, self.window, height, width)

    def length(self, height: int, width: int) -> int:
        """Return the length of the sequence of a map, with its padding."""
        if self.window is None:
            return height * width
        return math.prod(-(-side // self.window) * self.window for side in (height, width))


def parse_directions(blocks: Sequence[str]) -> tuple[tuple[LocalDirection, ...], ...]:
    """Return the directions of each block.

    Args:
        blocks: for each block, names separated by spaces: h (rows), v (columns) or wK (windows of side K), each with
            _flip for the reversed order, as in "h v_flip w7 w7_flip".

    Raises:
        ModelError: a name is unknown, or a block has none.
    """
    return tuple(map(_parse_block, blocks))


def _parse_block(block):
    if not block.split():
        raise ModelError("a block has no directions; expected at least one, such as 'h'")
    return tuple(map(_parse_direction, block.split()))


def _parse_direction(name):
    match = re.fullmatch(r"(h|v|w([1-9][0-9]{0,3}))(_flip)?", name)
    if match is None:
        raise ModelError(
            f"direction {name!r} is unknown; expected h (rows), v (columns), wK (windows of side K), or one of these "
            "with _flip"
        )
    return LocalDirection(match[1] == "v", None if match[2] is None else int(match[2]), match[3] is not None)


class ChannelGate(nnx.Module):
    """A gate on the channels of a sequence: x * sigmoid(channel_select(gelu(global_reduce(mean of norm(x))))).

    The mean is over the positions; the reduced width is channels / 8, rounded down.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype):
        reduced = int(channels * 0.125)
        self.norm = LayerNorm(channels, eps=1e-5)
        self.global_reduce = Linear(channels, reduced, dtype=dtype)
        self.channel_select = Linear(reduced, channels, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        mean = self.norm(x).astype(jnp.float32).mean(1, keepdims=True)
        gate = jax.nn.sigmoid(self.channel_select(gelu(self.global_reduce(mean))).astype(jnp.float32))
        return x * gate.astype(x.dtype)
