"""The selective scan: the state space model of Mamba, whose step size and projections depend on the input.

Reference: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023. Semantics follow
`selective_scan_ref` of github.com/state-spaces/mamba at e9594ce1, with channels last.
"""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.activations import softplus
from mambaout_jax.ops.recurrence import recurrence
from mambaout_jax.ops.sharding import spec_of, with_auto_axes

IMPLS = ("auto", "sequential", "associative", "chunked")
# In programs of `jax.export` for any batch size, the first dimension is an expression.
Shape = tuple[Any, ...]
# Live arrays A that were checked to have no positive values.
_CHECKED = weakref.WeakValueDictionary()


def selective_scan(
    u: Float[Array, "b l d"],
    delta: Float[Array, "b l d"],
    A: Float[Array, "d n"],
    B: Float[Array, "b l n"] | Float[Array, "b l g n"] | Float[Array, "d n"],
    C: Float[Array, "b l n"] | Float[Array, "b l g n"] | Float[Array, "d n"],
    D: Float[Array, " d"] | None = None,
    z: Float[Array, "b l d"] | None = None,
    delta_bias: Float[Array, " d"] | None = None,
    delta_softplus: bool = False,
    *,
    reverse: bool = False,
    initial_state: Float[Array, "b d n"] | None = None,
    return_last_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "b l d"] | tuple[Float[Array, "b l d"], Float[Array, "b d n"]]:
    """Compute h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and return y_t = (C_t h_t + D u_t) SiLU(z_t).

    The state and the decay are float32 (float64 for float64 inputs); the result has the dtype of `u`. No term is
    divided by a product of decays, so that strong decay cannot overflow.

    Args:
        delta: step sizes, before `delta_bias` and softplus if these are used.
        A: negative; the decay of each state is exp(delta A).
        B, C: (b, l, n) shared by all channels; (b, l, g, n) for g groups of d / g neighboring channels; (d, n)
            constant.
        reverse: scan from the last step to the first.
        initial_state: h before the first step of the scan; zeros by default.
        return_last_state: return (y, h after the last step of the scan).
        impl: "sequential" loops over steps; "associative" composes all steps in a tree, with (b, l, d, n) in memory;
            "chunked" composes the steps of a chunk and loops over chunks, with a VJP that recomputes the states within
            chunks. "auto" has the same kind of VJP and computes the chunks with kernels on TPUs, with loops on CPUs,
            and like "chunked" elsewhere. "chunked" and "auto" have no forward-mode derivative; the gradient of "auto"
            has derivatives of both modes, which store the states of all steps.

    Raises:
        ValueError: the type or shape of an argument is wrong, the sequence is empty, `A` has positive values (checked
            unless it is traced), or `impl` is unknown.
        Exception: under `jax.debug_nans(True)`, `delta` is not finite or `A` has positive values, traced or not. The
            type depends on the backend.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; expected one of {', '.join(map(repr, IMPLS))}")
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _check(given | {"initial_state": initial_state}, step=False)
    run = partial(run_scan, delta_softplus=delta_softplus, reverse=reverse, impl=impl)
    y, last = with_auto_axes(run, u, delta, A, B, C, D, z, delta_bias, initial_state, out=_specs(u))
    return (y, last) if return_last_state else y


def selective_scan_step(
    state: Float[Array, "b d n"],
    u: Float[Array, "b d"],
    delta: Float[Array, "b d"],
    A: Float[Array, "d n"],
    B: Float[Array, "b n"] | Float[Array, "b g n"],
    C: Float[Array, "b n"] | Float[Array, "b g n"],
    D: Float[Array, " d"] | None = None,
    z: Float[Array, "b d"] | None = None,
    delta_bias: Float[Array, " d"] | None = None,
    delta_softplus: bool = False,
) -> tuple[Float[Array, "b d"], Float[Array, "b d n"]]:
    """Compute one step of `selective_scan`, y and the next state, for streaming in constant memory.

    Args:
        B, C: projections of this step; two axes are (b, n). To use constant ones (d, n), pass d groups: (1, d, n)
            broadcast to (b, d, n).

    Raises:
        ValueError: as in `selective_scan`.
    """
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _check(given | {"state": state}, step=True)
    run = partial(_run_step, delta_softplus=delta_softplus)
    return with_auto_axes(run, state, u, delta, A, B, C, D, z, delta_bias, out=_specs(u))


def _specs(u):
    """Return the shardings of y and a state."""
    return spec_of(u), PartitionSpec(spec_of(u)[0], spec_of(u)[-1])


# Jitted, so that calls outside of jit reuse the compiled program; otherwise every call would trace loops and
# `platform_dependent` again. (With inline=True, gradients would not reuse it.)
@partial(jax.jit, static_argnames=("delta_softplus", "reverse", "impl"))
def run_scan(u, delta, A, B, C, D, z, delta_bias, state, *, delta_softplus, reverse, impl):
    """Compute y and the last state of checked arguments. Programs contain it under its name, by which it is counted."""
    B, C = (x[:, :, None] if x.ndim == 3 else x for x in (B, C))
    prepare = partial(_prepare, delta_softplus=delta_softplus, reverse=reverse)
    y, last = recurrence(prepare, u, delta, A, B, C, delta_bias, state, impl=impl)
    # Checkpointed: the backward pass stores the arguments, not the intermediate arrays.
    return jax.checkpoint(_output)(jnp.flip(y, 1) if reverse else y, u, D, z), last


@partial(jax.jit, static_argnames="delta_softplus")
def _run_step(state, u, delta, A, B, C, D, z, delta_bias, *, delta_softplus):
    u, delta, B, C, z = (None if x is None else x[:, None] for x in (u, delta, B, C, z))
    fixed = {"delta_softplus": delta_softplus, "reverse": False, "impl": "sequential"}
    y, state = run_scan(u, delta, A, B, C, D, z, delta_bias, state, **fixed)
    return y[:, 0], state


def _prepare(u, delta, A, B, C, delta_bias, state, *, delta_softplus, reverse):
    """Return the inputs of `recurrence`, in the order of its steps."""
    dtype = jnp.dtype("float64" if u.dtype == jnp.float64 else "float32")
    u, delta, A, B, C = (x.astype(dtype) for x in (u, delta, A, B, C))
    # Zeros like the product, to vary over the same axes under `shard_map`.
    state = jnp.zeros_like(u[:, 0, :, None] * A[None]) if state is None else state.astype(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.astype(dtype)[None, None]
    if delta_softplus:
        delta = softplus(delta)
    if reverse:
        u, delta = jnp.flip(u, 1), jnp.flip(delta, 1)
        B, C = (jnp.flip(x, 1) if x.ndim == 4 else x for x in (B, C))
    return u, delta, A, B, C, state


def _output(y, u, D, z):
    if D is not None:
        y = y + D.astype(y.dtype)[None, None] * u.astype(y.dtype)
    if z is not None:
        y = y * jax.nn.silu(z.astype(y.dtype))
    return y.astype(u.dtype)


def _check(given: Mapping[str, Array | None], *, step: bool) -> None:
    """Check all arguments against u and A; the state is the last one."""
    for name, x in given.items():
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is {x.dtype}; expected real numbers of a floating-point type")
    u, A = given["u"], given["A"]
    if u.ndim != (2 if step else 3) or 0 in u.shape[1:]:
        expected = "(b, d) of at least one channel" if step else "(b, l, d) of at least one step and channel"
        raise ValueError(f"u has shape {u.shape}; expected {expected}")
    if A.ndim != 2 or not A.shape[1]:
        raise ValueError(f"A has shape {A.shape}; expected (d, n) with at least one state")
    channels, states = u.shape[-1], A.shape[1]
    expected = {"delta": u.shape, "z": u.shape, "A": (channels, states), "D": (channels,), "delta_bias": (channels,)}
    _check_shapes({name: (given[name], shape) for name, shape in expected.items()})
    *_, state = given
    _check_shapes({state: (given[state], (u.shape[0], channels, states))})
    groups = {name: _check_projection(name, given[name], u.shape, states, constant=not step) for name in ("B", "C")}
    if None not in groups.values() and groups["B"] != groups["C"]:
        raise ValueError(f"B has {groups['B']} groups and C has {groups['C']}; expected equal numbers")
    _check_values(A, given["delta"])


def _check_projection(name: str, x: Array, shape: Shape, states: int, *, constant: bool) -> int | None:
    """Return the number of groups of B or C, or None if it is constant."""
    *rows, channels = shape
    if constant and x.ndim == 2:
        _check_shapes({name: (x, (channels, states))})
        return None
    groups = x.shape[-2] if x.ndim == len(rows) + 2 else 1
    if x.ndim - len(rows) not in (1, 2) or not groups or channels % groups:
        axes = "b, l" if constant else "b"
        raise ValueError(
            f"{name} has shape {x.shape}; expected ({axes}, n) or ({axes}, g, n) with g groups that divide the "
            f"{channels} channels{', or constant (d, n)' if constant else ''}"
        )
    _check_shapes({name: (x, (*rows, *[groups] * (x.ndim - len(rows) - 1), states))})
    return groups


def _check_shapes(arguments: Mapping[str, tuple[Array | None, Shape]]) -> None:
    for name, (x, expected) in arguments.items():
        if x is None or x.shape == expected:
            continue
        axis = next((i for i, pair in enumerate(zip(x.shape, expected, strict=False)) if len(set(pair)) > 1), None)
        where = f"axis {axis} has {x.shape[axis]}" if axis is not None else f"it has {x.ndim} axes"
        raise ValueError(f"{name} has shape {x.shape}, {where}; expected {expected}, to match u and A")


def _check_values(A: Array, delta: Array) -> None:
    # Reading an array blocks on the device, so each one is checked once: JAX arrays are immutable.
    if not isinstance(A, jax.core.Tracer) and _CHECKED.get(id(A)) is not A:
        _check_decay(A)
        if isinstance(A, jax.Array):
            _CHECKED[id(A)] = A
    if jax.config.jax_debug_nans:
        jax.debug.callback(_check_at_runtime, A, delta)


def _check_at_runtime(A: Array, delta: Array) -> None:
    _check_decay(A)
    if bad := int((~np.isfinite(np.asarray(delta, np.float32))).sum()):
        raise ValueError(
            f"delta is not finite at {bad} of {delta.size} positions; check the inputs and the learning rate"
        )


def _check_decay(A: Array) -> None:
    if positive := int((np.asarray(A, np.float32) > 0).sum()):
        raise ValueError(f"A is positive at {positive} of {A.size} positions, so states grow; expected A = -exp(A_log)")
