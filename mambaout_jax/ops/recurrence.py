"""The recurrence of the selective scan, with one implementation per kind of hardware.

h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t h_t, where A is diagonal. The states of all steps take n
times the memory of the input; only "associative" and the gradient of "sequential" store them. The other implementations
split the sequence into chunks, store the states at chunk boundaries and recompute the rest in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.ops.kernel_choice import kernels
from mambaout_jax.ops.pallas import recurrence_tpu
from mambaout_jax.ops.pallas.bands import LANES, SUBLANES
from mambaout_jax.ops.pallas.tpu_only import tpu_only

# Longest sequence for which "auto" is the plain loop: chunks and padding would cost more than the recurrence itself.
_SHORT = 4


# Layout: (batch, groups, states, channels of a group). Channels are last, so that the sum over states adds whole
# vectors. B and C broadcast over the channels of their group. A, and constant B and C, are broadcast over the batch, so
# that their gradients are summed over it once, after the scan.
class Fixed(NamedTuple):
    """Inputs that are constant along the sequence; B or C is None if it varies."""

    A: Float[Array, "b g n c"]
    B: Float[Array, "b g n c"] | None
    C: Float[Array, "b g n c"] | None


class Varying(NamedTuple):
    """Inputs that vary along the sequence, time axis first; B or C is None if it is constant."""

    u: Float[Array, "l b g c"]
    delta: Float[Array, "l b g c"]
    B: Float[Array, "l b g n"] | None
    C: Float[Array, "l b g n"] | None


State = Float[Array, "b g n c"]
# A scan over the first axis of `varying`; returns the last state and y (l, b, g, c).
Run = Callable[[Fixed, State, Varying], tuple[State, Array]]
# Returns (u, delta, A, B, C, state) in one dtype: u and delta (b, l, d), A (d, n), B and C (b, l, g, n) or (d, n),
# state (b, d, n).
Prepare = Callable[..., tuple[Array, Array, Array, Array, Array, Array]]


def recurrence(
    prepare: Prepare, *arguments: Array | None, impl: str
) -> tuple[Float[Array, "b l d"], Float[Array, "b d n"]]:
    """Compute y and the last state for the inputs `prepare(*arguments)`.

    Args:
        prepare: called again in the backward pass of "auto", which stores `arguments` instead of its results.
        arguments: arguments of `prepare`; the first is u (b, l, d).
        impl: as in `selective_scan`.
    """
    if impl == "auto":
        if arguments[0].shape[1] > _SHORT:
            return _auto(prepare, kernels() != "xla", *arguments)
        impl = "sequential"
    inputs = prepare(*arguments)
    if impl == "chunked":
        last, y = scan_recomputed(_associative, *_chunks(*inputs))
        return _join_chunks(y, inputs[0]), _channels_first(last)
    run = {"sequential": _sequential, "associative": _associative}[impl]
    last, y = run(*_time_major(*inputs))
    return jnp.moveaxis(y, 0, 1).reshape(inputs[0].shape), _channels_first(last)


def _step(fixed: Fixed, state: State, now: Varying) -> tuple[State, Array]:
    """Compute one step; the arrays of `now` have no time axis."""
    # Sums over states or channels are products of matrices, here and in derivatives: XLA's CPU backend hands larger
    # plain sums to YNNPACK, which takes several times as long as the rest of the step.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    ones = jnp.ones_like(fixed.A[..., 0])
    B, C = (ones if x is None else x for x in (now.B, now.C))
    decay = jnp.exp(product("bgc,bgn->bgnc", now.delta, ones) * fixed.A)
    state = decay * state + _times(product("bgc,bgn->bgnc", now.delta * now.u, B), fixed.B)
    return state, product("bgnc,bgn->bgc", _times(state, fixed.C), C)


def _times(x: Array, constant: Array | None) -> Array:
    return x if constant is None else x * constant


def _sequential(fixed: Fixed, state: State, varying: Varying) -> tuple[State, Array]:
    return lax.scan(partial(_step, fixed), state, varying)


def _associative(fixed: Fixed, state: State, varying: Varying) -> tuple[State, Array]:
    """Compute all steps by a tree of compositions; a step is a pair (a, x), which maps h to a h + x."""
    B, C = (y[..., None] if x is None else x[None] for x, y in ((fixed.B, varying.B), (fixed.C, varying.C)))
    a = jnp.exp(varying.delta[:, :, :, None] * fixed.A[None])
    x = (varying.delta * varying.u)[:, :, :, None] * B
    x = x.at[0].add(a[0] * state)
    _, states = lax.associative_scan(compose, (a, x))
    return states[-1], (states * C).sum(3)


def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the composition of two steps, `first` and then `second`; it is associative."""
    (a1, x1), (a2, x2) = first, second
    return a2 * a1, a2 * x1 + x2


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_recomputed(run: Run, fixed: Any, state: Any, varying: Any) -> tuple[Any, Any]:
    """Scan `run(fixed, state, slice of varying) -> (state, y)`; for the gradient, store only the states between slices.

    The backward pass calls `run` again for each slice, from the last to the first.
    """
    return lax.scan(partial(run, fixed), state, varying)


def _recomputed_fwd(run, fixed, state, varying):
    def forward(state, now):
        after, y = run(fixed, state, now)
        return after, (state, y)

    last, (boundaries, y) = lax.scan(forward, state, varying)
    return (last, y), (fixed, boundaries, varying)


def _recomputed_bwd(run, residuals, cotangents):
    fixed, boundaries, varying = residuals
    dlast, dy = cotangents

    def backward(carry, now):
        dstate, dfixed = carry
        boundary, inputs, dy_now = now
        df, dstate, dinputs = jax.vjp(run, fixed, boundary, inputs)[1]((dstate, dy_now))
        return (dstate, jax.tree.map(jnp.add, dfixed, df)), dinputs

    start = dlast, jax.tree.map(jnp.zeros_like, fixed)
    (dstate, dfixed), dvarying = lax.scan(backward, start, (boundaries, varying, dy), reverse=True)
    return dfixed, dstate, dvarying


scan_recomputed.defvjp(_recomputed_fwd, _recomputed_bwd)


def _loop(fixed: Fixed, state: State, varying: Varying) -> tuple[State, Array]:
    return scan_recomputed(_step, fixed, state, varying)


# As in `depthwise_conv2d`, `lax.platform_dependent` is called inside the VJP: its own VJP stores the residuals of all
# branches.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _auto(prepare, with_kernels, *arguments):
    return _auto_fwd(prepare, with_kernels, *arguments)[0]


def _auto_fwd(prepare, with_kernels, *arguments):
    inputs = prepare(*arguments)
    y, last, boundaries = _by_platform(_forward, recurrence_tpu.forward if with_kernels else None, inputs, ())
    return (y, last), (arguments, boundaries)


def _auto_bwd(prepare, with_kernels, residuals, cotangents):
    arguments, boundaries = residuals
    inputs, to_arguments = jax.vjp(prepare, *arguments)
    kernel = recurrence_tpu.backward if with_kernels else None
    return to_arguments(_by_platform(_backward, kernel, inputs, (boundaries, *cotangents)))


_auto.defvjp(_auto_fwd, _auto_bwd)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_platform(general, kernel, inputs, others):
    """Run the implementation for the platform of lowering.

    The kernel, if there is one, requires float32, varying B and C, and a batch of known size, which programs of
    `jax.export` may lack.

    The derivative, which only second derivatives of the recurrence use, is that of the general implementation on every
    platform: kernels have none.
    """
    u, _, A, B, C, _ = inputs
    forms = {"cpu": partial(general, _loop), "default": partial(general, _associative)}
    is_known = isinstance(u.size, int) and u.size > 0
    fits = is_known and B.ndim == C.ndim == 4 and u.dtype == jnp.float32 and recurrence_tpu.fits(A.shape[1])
    if kernel is not None and fits:
        forms["tpu"] = partial(tpu_only, partial(kernel, shape=chunk_shape(u.shape[1])))
    return lax.platform_dependent(*inputs, *others, **forms)


def _by_platform_jvp(general, kernel, primals, tangents):
    # `_loop` has no forward-mode derivative.
    forms = {"cpu": partial(general, _sequential), "default": partial(general, _associative)}
    return jax.jvp(lambda inputs, others: lax.platform_dependent(*inputs, *others, **forms), primals, tangents)


_by_platform.defjvp(_by_platform_jvp)


def _forward(run: Run, *inputs):
    """Return y, the last state, and the states before each chunk (chunks, b, n, d), as the TPU kernels return them."""
    (last, y), (_, boundaries, _) = _recomputed_fwd(run, *_chunks(*inputs))
    return _join_chunks(y, inputs[0]), _channels_first(last), _ungrouped(boundaries)


def _backward(run: Run, *arguments):
    *inputs, boundaries, dy, dlast = arguments
    (fixed, state, chunks), to_inputs = jax.vjp(_chunks, *inputs)
    dy = _split_chunks(jnp.moveaxis(dy, 1, 0)).reshape(chunks.u.shape)
    cotangents = _grouped(dlast, state.shape[1]), dy
    boundaries = _grouped(boundaries.swapaxes(-1, -2), state.shape[1])
    return to_inputs(_recomputed_bwd(run, (fixed, boundaries, chunks), cotangents))


def _time_major(u, delta, A, B, C, state) -> tuple[Fixed, State, Varying]:
    groups = next((x.shape[2] for x in (B, C) if x.ndim == 4), 1)
    varying = Varying(
        *(jnp.moveaxis(x, 1, 0).reshape(x.shape[1], x.shape[0], groups, x.shape[2] // groups) for x in (u, delta)),
        *(jnp.moveaxis(x, 1, 0) if x.ndim == 4 else None for x in (B, C)),
    )
    state = _grouped(state, groups)
    fixed = (jnp.broadcast_to(_grouped(x, groups)[None], state.shape) if x.ndim == 2 else None for x in (A, B, C))
    return Fixed(*fixed), state, varying


def _grouped(x: Float[Array, "... d n"], groups: int) -> Float[Array, "... g n c"]:
    *sizes, d, n = x.shape
    return x.reshape(*sizes, groups, d // groups, n).swapaxes(-1, -2)


def _ungrouped(x: Float[Array, "... g n c"]) -> Float[Array, "... n d"]:
    *sizes, g, n, c = x.shape
    return x.swapaxes(-2, -3).reshape(*sizes, n, g * c)


def _channels_first(state: State) -> Float[Array, "b d n"]:
    return _ungrouped(state).swapaxes(-1, -2)


def _chunks(*inputs) -> tuple[Fixed, State, Varying]:
    fixed, state, varying = _time_major(*inputs)
    return fixed, state, jax.tree.map(_split_chunks, varying)


def _split_chunks(x: Float[Array, "l ..."]) -> Float[Array, "chunks steps ..."]:
    """Split the time axis into chunks; steps of padding, with delta = 0, do not change the state."""
    count, length = chunk_shape(x.shape[0])
    x = jnp.pad(x, [(0, count * length - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, length, *x.shape[1:])


def chunk_shape(length: int) -> tuple[int, int]:
    """Return the number of chunks of a sequence and their length, chosen for the registers of a TPU."""
    count = -(-length // LANES)
    return count, -(-length // (count * SUBLANES)) * SUBLANES


def _join_chunks(y: Float[Array, "chunks steps b g c"], u: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    return jnp.moveaxis(lax.collapse(y, 0, 2)[: u.shape[1]], 0, 1).reshape(u.shape)
