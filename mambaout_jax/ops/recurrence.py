"""The recurrence inside the selective scan, with implementations for each kind of hardware.

h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t h_t, where A is diagonal. All states of a sequence at once
are n times the size of its input: only `associative` and the gradient of `sequential` store them. The others split the
sequence into chunks, store the states at their borders and recompute the rest in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.ops import recurrence_tpu

# Steps up to which `auto` is the plain loop: chunks and padding would cost more than the recurrence itself.
_SHORT = 4


class Fixed(NamedTuple):
    """Inputs that are the same at every step; B or C is None where it varies."""

    A: Float[Array, "1 n d"]
    B: Float[Array, "1 n d"] | None
    C: Float[Array, "1 n d"] | None


class Along(NamedTuple):
    """Inputs that vary along the sequence, the axis of time first; B or C is None where it is constant."""

    u: Float[Array, "l b d"]
    delta: Float[Array, "l b d"]
    B: Float[Array, "l b n g"] | None
    C: Float[Array, "l b n g"] | None


# Channels last: y sums over an axis that is not along the vectors of the hardware.
State = Float[Array, "b n d"]
# A function that runs over the first axis of `along` and returns the last state and y (l, b, d).
Run = Callable[[Fixed, State, Along], tuple[State, Array]]
# A function that returns (u, delta, A, B, C, state) in one dtype: u and delta (b, l, d), A (d, n), B and C (b, l, g, n)
# or (d, n), state (b, d, n).
Prepare = Callable[..., tuple[Array, Array, Array, Array, Array, Array]]


def recurrence(
    prepare: Prepare, *arguments: Array | None, impl: str
) -> tuple[Float[Array, "b l d"], Float[Array, "b d n"]]:
    """Compute y and the last state from the inputs that `prepare` computes from the arguments.

    Args:
        prepare: called again in the backward pass of "auto", which stores the arguments, not its results.
        arguments: of `prepare`; the first is u (b, l, d).
        impl: of `selective_scan`.
    """
    if impl == "auto":
        if arguments[0].shape[1] > _SHORT:
            return _auto(prepare, *arguments)
        impl = "sequential"
    inputs = prepare(*arguments)
    if impl == "chunked":
        last, y = scan_recomputed(_associative, *_chunks(*inputs))
        return _joined(y, inputs[0]), last.transpose(0, 2, 1)
    run = {"sequential": _sequential, "associative": _associative}[impl]
    last, y = run(*_time_major(*inputs))
    return jnp.moveaxis(y, 0, 1), last.transpose(0, 2, 1)


def _step(fixed: Fixed, state: State, now: Along) -> tuple[State, Array]:
    """Compute one step; the arrays of `now` have no axis of time."""
    B, C = (_spread(*pair, fixed.A) for pair in ((fixed.B, now.B), (fixed.C, now.C)))
    state = jnp.exp(now.delta[:, None] * fixed.A) * state + (now.delta * now.u)[:, None] * B
    return state, (state * C).sum(1)


def _sequential(fixed: Fixed, state: State, along: Along) -> tuple[State, Array]:
    return lax.scan(partial(_step, fixed), state, along)


def _associative(fixed: Fixed, state: State, along: Along) -> tuple[State, Array]:
    """Compute all steps as a tree of compositions; a step is a pair (a, x) that maps h to a h + x."""
    A, *constants = (None if x is None else x[None] for x in fixed)
    B, C = (_spread(*pair, A) for pair in zip(constants, (along.B, along.C), strict=True))
    a = jnp.exp(along.delta[:, :, None] * A)
    x = (along.delta * along.u)[:, :, None] * B
    x = x.at[0].add(a[0] * state)
    _, states = lax.associative_scan(compose, (a, x))
    return states[-1], (states * C).sum(2)


def _spread(constant: Array | None, groups: Float[Array, "... g"] | None, like: Float[Array, "... d"]) -> Array:
    """Return B or C with an axis that broadcasts with the channels of `like`."""
    if groups is None:
        return constant
    g, d = groups.shape[-1], like.shape[-1]
    return groups if g == 1 else jnp.repeat(groups, d // g, axis=-1, total_repeat_length=d)


def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the composition of two steps, `first` and then `second`: an associative operation."""
    (a1, x1), (a2, x2) = first, second
    return a2 * a1, a2 * x1 + x2


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_recomputed(run: Run, fixed: Any, state: Any, along: Any) -> tuple[Any, Any]:
    """Scan `run(fixed, state, slice of along) -> (state, y)`; its gradient stores only the states between slices.

    The backward pass runs `run` once more for each slice, from its last to its first.
    """
    return lax.scan(partial(run, fixed), state, along)


def _recomputed_fwd(run, fixed, state, along):
    def keep(state, now):
        after, y = run(fixed, state, now)
        return after, (state, y)

    last, (borders, y) = lax.scan(keep, state, along)
    return (last, y), (fixed, borders, along)


def _recomputed_bwd(run, residuals, cotangents):
    fixed, borders, along = residuals
    dlast, dy = cotangents

    def pull(carry, now):
        dstate, dfixed = carry
        border, inputs, dy_now = now
        df, dstate, dinputs = jax.vjp(run, fixed, border, inputs)[1]((dstate, dy_now))
        return (dstate, jax.tree.map(jnp.add, dfixed, df)), dinputs

    start = dlast, jax.tree.map(jnp.zeros_like, fixed)
    (dstate, dfixed), dalong = lax.scan(pull, start, (borders, along, dy), reverse=True)
    return dfixed, dstate, dalong


scan_recomputed.defvjp(_recomputed_fwd, _recomputed_bwd)


def _loop(fixed: Fixed, state: State, along: Along) -> tuple[State, Array]:
    return scan_recomputed(_step, fixed, state, along)


# As in `depthwise_conv2d`, the VJP contains the choice of platform: a choice that is differentiated stores the
# residuals of all its branches.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _auto(prepare, *arguments):
    return _auto_fwd(prepare, *arguments)[0]


def _auto_fwd(prepare, *arguments):
    inputs = prepare(*arguments)
    y, last, borders = _by_platform(inputs, (), _forward, recurrence_tpu.forward)
    return (y, last), (arguments, borders)


def _auto_bwd(prepare, residuals, cotangents):
    arguments, borders = residuals
    inputs, to_arguments = jax.vjp(prepare, *arguments)
    return to_arguments(_by_platform(inputs, (borders, *cotangents), _backward, recurrence_tpu.backward))


_auto.defvjp(_auto_fwd, _auto_bwd)


def _by_platform(inputs, others, general, kernels):
    """Run the implementation for the lowered platform; kernels need float32 and varying B and C."""
    u, _, A, B, C, _ = inputs
    forms = {"cpu": partial(general, _loop), "default": partial(general, _associative)}
    if u.size and B.ndim == C.ndim == 4 and u.dtype == jnp.float32 and recurrence_tpu.fits(A.shape[1]):
        forms["tpu"] = partial(kernels, shape=chunk_shape(u.shape[1]))
    return lax.platform_dependent(*inputs, *others, **forms)


def _forward(run: Run, *inputs):
    (last, y), (_, borders, _) = _recomputed_fwd(run, *_chunks(*inputs))
    return _joined(y, inputs[0]), last.transpose(0, 2, 1), borders


def _backward(run: Run, *arguments):
    *inputs, borders, dy, dlast = arguments
    (fixed, _, chunks), to_inputs = jax.vjp(_chunks, *inputs)
    cotangents = dlast.transpose(0, 2, 1), _cut(jnp.moveaxis(dy, 1, 0))
    return to_inputs(_recomputed_bwd(run, (fixed, borders, chunks), cotangents))


def _time_major(u, delta, A, B, C, state) -> tuple[Fixed, State, Along]:
    constant = [x.T[None] if x.ndim == 2 else None for x in (B, C)]
    moving = [x.transpose(1, 0, 3, 2) if x.ndim == 4 else None for x in (B, C)]
    along = Along(jnp.moveaxis(u, 1, 0), jnp.moveaxis(delta, 1, 0), *moving)
    return Fixed(A.T[None], *constant), state.transpose(0, 2, 1), along


def _chunks(*inputs) -> tuple[Fixed, State, Along]:
    fixed, state, along = _time_major(*inputs)
    return fixed, state, jax.tree.map(_cut, along)


def _cut(x: Float[Array, "l ..."]) -> Float[Array, "chunks steps ..."]:
    """Split the time axis into chunks; padded steps, where delta is 0, do not change the state."""
    count, length = chunk_shape(len(x))
    x = jnp.pad(x, [(0, count * length - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, length, *x.shape[1:])


def chunk_shape(length: int) -> tuple[int, int]:
    """Return the number of chunks of a sequence and their length, which fit the registers of a TPU."""
    count = -(-length // recurrence_tpu.LANES)
    return count, -(-length // (count * recurrence_tpu.ROWS)) * recurrence_tpu.ROWS


def _joined(y: Float[Array, "chunks steps b d"], u: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    return jnp.moveaxis(lax.collapse(y, 0, 2)[: u.shape[1]], 0, 1)
