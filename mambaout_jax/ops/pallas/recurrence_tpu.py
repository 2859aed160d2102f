"""Pallas TPU kernels for the recurrence of `ops.recurrence`: states stay in registers and VMEM.

Each grid step computes one chunk of one block of channels, with the state (n, channels) in registers: channels along
lanes, states along sublanes. The chunks of a sequence run in order and pass on the state in VMEM. B and C are columns,
one lane per step, and are broadcast along lanes. The only array with axes for steps, states and channels is the scratch
for the states of a chunk in the backward kernel.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mambaout_jax.ops.pallas.bands import LANES, SUBLANES, like
from mambaout_jax.ops.sharding import map_rows

# Preferred and maximum number of states times channels in a block: the float32 states of a chunk then take 3 and 6 MiB
# of the 16 MiB available to a kernel.
_BLOCK, _LARGEST = 6144, 12288


class Sizes(NamedTuple):
    """Sizes of a kernel call: `steps` per chunk, padded `channels` per group, padded `states` per channel."""

    batch: int
    groups: int
    chunks: int
    steps: int
    states: int
    channels: int

    @property
    def length(self) -> int:
        """Return the number of steps in all chunks."""
        return self.chunks * self.steps

    @property
    def block(self) -> int:
        """Return the number of channels per block: the widest block that fits and divides a group."""
        blocks = range(LANES, max(_BLOCK // self.states, LANES) + 1, LANES)
        return max(block for block in blocks if self.channels % block == 0)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Return the grid of a kernel: sequences, groups, blocks of channels, chunks in order."""
        return self.batch, self.groups, self.channels // self.block, self.chunks


def fits(num_states: int) -> bool:
    """Return whether the states of a block fit."""
    return num_states * LANES <= _LARGEST


def kernel_sizes(batch: int, chunks: int, steps: int, channels: int, groups: int, states: int) -> Sizes:
    """Return the sizes, with states padded to whole sublanes and the channels of a group to whole lanes."""
    width = channels // groups
    return Sizes(batch, groups, chunks, steps, -(-states // SUBLANES) * SUBLANES, -(-width // LANES) * LANES)


def forward(u, delta, A, B, C, state, *, shape: tuple[int, int], interpret: bool = False):
    """Compute y (b, l, d), the last state (b, d, n) and the state before each chunk (chunks, b, n, d).

    Args:
        u, delta, A, B, C, state: as in `recurrence`; B and C vary along the sequence.
        shape: number of chunks and steps per chunk.
    """
    sizes = kernel_sizes(len(u), *shape, u.shape[2], B.shape[2], A.shape[1])
    layout = partial(_layout, sizes=sizes)
    run = partial(_forward_kernels, sizes=sizes, interpret=interpret)
    *rows, padded_A = layout(u, delta, B, C, state, A)
    y, last, boundaries = map_rows(run, rows, replicated=(padded_A,))
    (d, n), length = A.shape, u.shape[1]
    boundaries = jnp.moveaxis(_unpad_channels(boundaries, d, sizes)[:, :, :n], 1, 0)
    return (
        _unpad_channels(y, d, sizes)[:, :length],
        _unpad_channels(last, d, sizes)[:, :n].transpose(0, 2, 1),
        boundaries,
    )


def backward(u, delta, A, B, C, state, boundaries, dy, dlast, *, shape: tuple[int, int], interpret: bool = False):
    """Compute the gradients of the arguments of `forward` from those of y and the last state."""
    sizes = kernel_sizes(len(u), *shape, u.shape[2], B.shape[2], A.shape[1])
    (*rows, padded_A), to_inputs = jax.vjp(partial(_layout, sizes=sizes), u, delta, B, C, state, A)
    boundaries = _pad_channels(jnp.moveaxis(boundaries, 0, 1), sizes, rows=sizes.states)
    run = partial(_backward_kernels, sizes=sizes, interpret=interpret)
    cotangents = _pad_channels(dy, sizes, rows=sizes.length), _states_first(dlast, sizes)
    du, ddelta, dA, dB, dC, dstate = map_rows(run, rows, boundaries, *cotangents, replicated=(padded_A,))
    du, ddelta, dB, dC, dstate, dA = to_inputs([du, ddelta, dB.sum(2), dC.sum(2), dstate, dA.sum(0)])
    return du, ddelta, dA, dB, dC, dstate


def _layout(u, delta, B, C, state, A, *, sizes: Sizes):
    return [
        _pad_channels(u, sizes, rows=sizes.length),
        _pad_channels(delta, sizes, rows=sizes.length),
        _columns(B, sizes),
        _columns(C, sizes),
        _states_first(state, sizes),
        _states_first(A[None], sizes)[0],
    ]


def _pad_channels(x: Float[Array, "... r d"], sizes: Sizes, *, rows: int) -> Float[Array, "... rows channels"]:
    """Pad the channels of each group, and the axis before them to `rows`."""
    x = x.reshape(*x.shape[:-1], sizes.groups, -1)
    missing = (rows - x.shape[-3], 0, sizes.channels - x.shape[-1])
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, count) for count in missing])
    return x.reshape(*x.shape[:-2], -1)


def _unpad_channels(x: Float[Array, "... channels"], d: int, sizes: Sizes) -> Float[Array, "... d"]:
    x = x.reshape(*x.shape[:-1], sizes.groups, sizes.channels)[..., : d // sizes.groups]
    return x.reshape(*x.shape[:-2], d)


def _states_first(state: Float[Array, "b d n"], sizes: Sizes) -> Float[Array, "b states channels"]:
    return _pad_channels(state.transpose(0, 2, 1), sizes, rows=sizes.states)


def _columns(x: Float[Array, "b l g n"], sizes: Sizes) -> Float[Array, "b g states lanes"]:
    """Return B or C with one lane per step; each chunk is padded to the lanes of a register."""
    batch, length, groups, n = x.shape
    x = jnp.pad(x, ((0, 0), (0, sizes.length - length), (0, 0), (0, sizes.states - n)))
    x = x.reshape(batch, sizes.chunks, sizes.steps, groups, sizes.states)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, LANES - sizes.steps), (0, 0), (0, 0)))
    return x.transpose(0, 3, 4, 1, 2).reshape(batch, groups, sizes.states, sizes.chunks * LANES)


def _specs(sizes: Sizes, chunk):
    """Return block specs of u, A, B, a state, the states before chunks, a gradient of B; `chunk` maps grid indices."""
    block, blocks, n = sizes.block, sizes.grid[2], sizes.states

    def channels(group, k):
        return group * blocks + k

    return (
        pl.BlockSpec((1, sizes.steps, block), lambda b, g, k, c: (b, chunk(c), channels(g, k))),
        pl.BlockSpec((n, block), lambda b, g, k, c: (0, channels(g, k))),
        pl.BlockSpec((1, 1, n, LANES), lambda b, g, k, c: (b, g, 0, chunk(c))),
        pl.BlockSpec((1, n, block), lambda b, g, k, c: (b, 0, channels(g, k))),
        pl.BlockSpec((1, 1, n, block), lambda b, g, k, c: (b, chunk(c), 0, channels(g, k))),
        pl.BlockSpec((1, 1, 1, n, LANES), lambda b, g, k, c: (b, g, k, 0, chunk(c))),
    )


_ORDER = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"))


def _like(x, *shapes):
    return [like(x, shape, jnp.float32) for shape in shapes]


def _forward_kernels(inputs, A, *, sizes: Sizes, interpret: bool):
    u, delta, B, C, state = inputs
    batch = len(u)
    sizes = sizes._replace(batch=batch)
    rows, decay, columns, states, boundaries, _ = _specs(sizes, lambda c: c)
    channels = sizes.groups * sizes.channels
    return pl.pallas_call(
        _forward_kernel,
        grid=sizes.grid,
        in_specs=[rows, rows, decay, columns, columns, states],
        out_specs=[rows, states, boundaries],
        out_shape=_like(
            u,
            (batch, sizes.length, channels),
            (batch, sizes.states, channels),
            (batch, sizes.chunks, sizes.states, channels),
        ),
        scratch_shapes=[pltpu.VMEM((sizes.states, sizes.block), jnp.float32)],
        compiler_params=_ORDER,
        interpret=interpret,
        name="selective_scan_forward",
    )(u, delta, A, B, C, state)


def _forward_kernel(u, delta, A, B, C, initial, y, last, boundary, state):
    @pl.when(pl.program_id(3) == 0)
    def _():
        state[...] = initial[0]

    boundary[0, 0] = state[...]

    def step_rows(index, h):
        at = pl.ds(index * SUBLANES, SUBLANES)
        u_rows, delta_rows = u[0, at], delta[0, at]
        b, c = (_rotate_lanes(x, index) for x in (B, C))
        out = []
        for row in range(SUBLANES):
            d, column = delta_rows[row : row + 1], slice(row, row + 1)
            h = jnp.exp(d * A[...]) * h + (d * u_rows[column]) * b[:, column]
            out.append((h * c[:, column]).sum(0, keepdims=True))
        y[0, at] = jnp.concatenate(out, 0)
        return h

    state[...] = lax.fori_loop(0, u.shape[1] // SUBLANES, step_rows, state[...])
    last[0] = state[...]


def _rotate_lanes(columns, index):
    """Rotate the lanes of B or C so that the steps of block `index` come first."""
    return pltpu.roll(columns[0, 0], (LANES - index * SUBLANES) % LANES, 1)


def _backward_kernels(inputs, boundaries, dy, dlast, A, *, sizes: Sizes, interpret: bool):
    u, delta, B, C, _ = inputs
    batch = len(u)
    sizes = sizes._replace(batch=batch)
    rows, decay, columns, state, before, gradient = _specs(sizes, lambda c: sizes.chunks - 1 - c)
    channels, length = sizes.groups * sizes.channels, sizes.length
    blocks, lanes = sizes.grid[2], sizes.chunks * LANES
    state_scratch = pltpu.VMEM((sizes.states, sizes.block), jnp.float32)
    return pl.pallas_call(
        _backward_kernel,
        grid=sizes.grid,
        in_specs=[rows, rows, decay, columns, columns, before, rows, state],
        out_specs=[rows, rows, state, gradient, gradient, state],
        out_shape=_like(
            dy,
            (batch, length, channels),
            (batch, length, channels),
            (batch, sizes.states, channels),
            (batch, sizes.groups, blocks, sizes.states, lanes),
            (batch, sizes.groups, blocks, sizes.states, lanes),
            (batch, sizes.states, channels),
        ),
        scratch_shapes=[
            pltpu.VMEM((sizes.steps, sizes.states, sizes.block), jnp.float32),
            state_scratch,
            state_scratch,
        ],
        compiler_params=_ORDER,
        interpret=interpret,
        name="selective_scan_backward",
    )(u, delta, A, B, C, boundaries, dy, dlast)


def _backward_kernel(u, delta, A, B, C, boundary, dy, dlast, du, ddelta, dA, dB, dC, dstart, states, dstate, dA_sum):
    @pl.when(pl.program_id(3) == 0)
    def _():
        dstate[...] = dlast[0]
        dA_sum[...] = jnp.zeros_like(dA_sum)

    num_blocks = u.shape[1] // SUBLANES

    def recompute(index, h):
        at = pl.ds(index * SUBLANES, SUBLANES)
        u_rows, delta_rows, b = u[0, at], delta[0, at], _rotate_lanes(B, index)
        for row in range(SUBLANES):
            states[index * SUBLANES + row] = h
            d, column = delta_rows[row : row + 1], slice(row, row + 1)
            h = jnp.exp(d * A[...]) * h + (d * u_rows[column]) * b[:, column]
        return h

    lax.fori_loop(0, num_blocks, recompute, boundary[0, 0])
    lane = lax.broadcasted_iota(jnp.int32, (A.shape[0], LANES), 1)

    def backward_rows(count, carry):
        g, dA_now, dB_now, dC_now = carry
        index = num_blocks - 1 - count
        at = pl.ds(index * SUBLANES, SUBLANES)
        u_rows, delta_rows, dy_rows = u[0, at], delta[0, at], dy[0, at]
        b, c = (_rotate_lanes(x, index) for x in (B, C))
        du_rows, ddelta_rows = [], []
        for row in reversed(range(SUBLANES)):
            column, here = slice(row, row + 1), lane == index * SUBLANES + row
            d, u_row, dy_row = delta_rows[column], u_rows[column], dy_rows[column]
            x, decay = d * u_row, jnp.exp(d * A[...])
            decayed = decay * states[index * SUBLANES + row]
            h = decayed + x * b[:, column]
            dC_now = jnp.where(here, (h * dy_row).sum(1, keepdims=True), dC_now)
            g = g + dy_row * c[:, column]
            dB_now = jnp.where(here, (g * x).sum(1, keepdims=True), dB_now)
            dx = (g * b[:, column]).sum(0, keepdims=True)
            dexponent = g * decayed
            ddelta_rows.insert(0, (dexponent * A[...]).sum(0, keepdims=True) + dx * u_row)
            du_rows.insert(0, dx * d)
            dA_now = dA_now + dexponent * d
            g = g * decay
        du[0, at], ddelta[0, at] = jnp.concatenate(du_rows, 0), jnp.concatenate(ddelta_rows, 0)
        return g, dA_now, dB_now, dC_now

    initial = dstate[...], dA_sum[...], jnp.zeros(lane.shape, jnp.float32), jnp.zeros(lane.shape, jnp.float32)
    dstate[...], dA_sum[...], dB[0, 0, 0], dC[0, 0, 0] = lax.fori_loop(0, num_blocks, backward_rows, initial)
    dA[0], dstart[0] = dA_sum[...], dstate[...]
