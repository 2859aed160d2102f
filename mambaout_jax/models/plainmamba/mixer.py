"""The mixer of PlainMamba: a selective scan along four continuous paths, with an input matrix that depends on the move.

Reference: Yang et al., PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition, 2024;
github.com/ChenhongyiYang/PlainMamba at 0975a1d0, plain_mamba_layer.py, whose parameter names these are.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import normal, ones, parameter
from mambaout_jax.models.layers.selective_ssm import initial_decay
from mambaout_jax.ops import matmul, selective_scan
from mambaout_jax.ops.remat import saveable

# Moves from one position of a path to the next; rows of `direction_Bs`.
START, RIGHT, LEFT, UP, DOWN = range(5)
# The paths: row by row from the first pixel, the same path backward, column by column, the same path backward.
NUM_PATHS = 4


class SnakeMixer(nnx.Module):
    """A gated selective scan of a feature map along four paths: out_proj(sum of the scans * SiLU(z)).

    (v, z) = in_proj(x); u = SiLU(conv2d(v)); (dt, B, C) = x_proj(u). The scan along a path reads u in the order of the
    path. Delta, B and C are not reordered: every path reads them row by row, as in the reference. The row of
    `direction_Bs` for the move to a position is added to B at this step. Delta is softplus(dt_proj(dt) + bias of
    dt_proj): the reference adds the bias twice. The paths share all parameters.

    Args:
        d_state: states per channel.
        expand: ratio of scanned channels to dim.
        kernel_size: of the convolution, in pixels; odd.
        bias: whether in_proj and out_proj have biases.
        impl: implementation of the scan, as in `selective_scan`.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int,
        expand: float,
        kernel_size: int,
        bias: bool,
        impl: str,
        dtype: jnp.dtype,
    ):
        channels, rank = int(expand * dim), math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * channels, bias=bias, dtype=dtype)
        # The reference changes PyTorch's initial values of linear layers only.
        self.conv2d = default_conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, dtype=dtype
        )
        self.x_proj = Linear(channels, rank + 2 * d_state, bias=False, dtype=dtype)
        self.dt_proj = Linear(rank, channels, dtype=dtype)
        self.A_log = parameter((channels, d_state), initial_decay)
        self.D = parameter((channels,), ones)
        self.direction_Bs = parameter((5, d_state), normal)
        self.out_proj = Linear(channels, dim, bias=bias, dtype=dtype)
        self.impl = impl

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        v, z = self.in_proj.apply_split(x, [self.D.shape[0]])
        y = self._scan(jax.nn.silu(self.conv2d(v)))
        return self.out_proj(y * jax.nn.silu(z))

    def _scan(self, u: Float[Array, "b h w e"]) -> Float[Array, "b h w e"]:
        """Compute the sum of the scans along all paths, as one scan of their channels side by side."""
        b, h, w, _ = u.shape
        rank, (_, n) = self.dt_proj.weight.shape[0], self.A_log.shape
        dt, B, C = jnp.split(self.x_proj(u).reshape(b, h * w, -1), [rank, rank + n], axis=-1)
        delta = saveable(matmul(dt, self.dt_proj.weight.astype(dt.dtype)))
        # One term per move; a lookup would be a gather, and its gradient a scatter.
        moves = path_moves(h, w)[None, ..., None]
        direction_B = sum((moves == move) * row[None, None, None] for move, row in enumerate(self.direction_Bs[...]))
        y = selective_scan(
            to_paths(u),
            jnp.tile(delta, NUM_PATHS),
            jnp.tile(-jnp.exp(self.A_log[...]), (NUM_PATHS, 1)),
            B[:, :, None] + direction_B,
            jnp.broadcast_to(C[:, :, None], (b, h * w, NUM_PATHS, n)),
            jnp.tile(self.D[...], NUM_PATHS),
            delta_bias=jnp.tile(2 * self.dt_proj.bias[...], NUM_PATHS),
            delta_softplus=True,
            impl=self.impl,
        )
        return saveable(sum_paths(y, h, w))


def to_paths(x: Float[Array, "b h w c"]) -> Float[Array, "b l _"]:
    """Return the pixels in the order of each path, with the channels of the four paths side by side."""
    b, h, w, c = x.shape
    rows, columns = (_flip_odd_rows(each).reshape(b, h * w, c) for each in (x, x.swapaxes(1, 2)))
    return jnp.concatenate([rows, jnp.flip(rows, 1), columns, jnp.flip(columns, 1)], axis=-1)


def sum_paths(y: Float[Array, "b l _"], height: int, width: int) -> Float[Array, "b h w c"]:
    """Return the sum over the paths at each pixel, from channels in the order of `to_paths`."""
    b = y.shape[0]
    rows, rows_back, columns, columns_back = jnp.split(y, NUM_PATHS, axis=-1)
    rows = _flip_odd_rows((rows + jnp.flip(rows_back, 1)).reshape(b, height, width, -1))
    columns = _flip_odd_rows((columns + jnp.flip(columns_back, 1)).reshape(b, width, height, -1))
    return rows + columns.swapaxes(1, 2)


def _flip_odd_rows(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Return a map with every other row reversed, so that its rows form a continuous path; its own inverse."""
    odd = (np.arange(x.shape[1]) % 2 == 1)[None, :, None, None]
    return jnp.where(odd, jnp.flip(x, 2), x)


@functools.cache
def path_moves(height: int, width: int) -> Int[np.ndarray, "l 4"]:
    """Return the move that leads to each position of each path."""
    rows = _row_moves(height, width)
    # Columns are the rows of the transposed map, so right and down, and left and up, change places.
    columns = np.array([START, DOWN, UP, LEFT, RIGHT])[_row_moves(width, height)]
    return np.stack([rows, _backward(rows), columns, _backward(columns)], axis=-1)


def _row_moves(height: int, width: int) -> Int[np.ndarray, " l"]:
    moves = np.where(np.arange(height)[:, None] % 2 == 0, RIGHT, LEFT) + np.zeros((1, width), int)
    moves[:, 0] = DOWN
    moves[0, 0] = START
    return moves.ravel()


def _backward(moves: Int[np.ndarray, " l"]) -> Int[np.ndarray, " l"]:
    opposite = np.array([START, LEFT, RIGHT, DOWN, UP])[moves]
    return np.concatenate([opposite[:1], opposite[:0:-1]])
