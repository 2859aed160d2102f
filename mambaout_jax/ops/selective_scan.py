"""The selective scan: the state space model of Mamba, whose step size and projections depend on the input.

Reference: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023; the semantics are those
of `selective_scan_ref` of github.com/state-spaces/mamba at e9594ce1, channels last.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mambaout_jax.ops.recurrence import recurrence

IMPLS = ("auto", "sequential", "associative", "chunked")


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
    """Run h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and give y_t = (C_t h_t + D u_t) SiLU(z_t).

    The state and all that leads to it are float32 (float64 for inputs of that); the result has the dtype of `u`.
    Nothing is divided by a product of decays, so that no decay is too strong.

    Args:
        delta: step sizes, before `delta_bias` and softplus where these are given.
        A: negative: the decay of each state is exp(delta A).
        B, C: one of each for all channels, or for each of g groups of d / g neighbouring channels, or constant.
        reverse: run from the last step to the first.
        initial_state: h before the first step that is run; zero by default.
        return_last_state: give (y, h after the last step that is run).
        impl: "sequential" is a loop over steps; "associative" composes all steps in a tree, with (b, l, d, n) in
            memory; "chunked" does so inside of chunks and loops over them, with a VJP that computes the states inside
            of chunks again. "auto" has such a VJP in every program: in one for a TPU kernels run the chunks, for a CPU
            loops do, for others it is "chunked". The last two have no forward-mode derivative.

    Raises:
        ValueError: an argument's type or shape does not fit, the sequence is empty, `A` is positive (where it is known
            when the program is traced), or `impl` is unknown.
        Exception: under `jax.debug_nans(True)`, which costs a look at all values: `delta` is not finite or `A`
            positive. Which one depends on what runs the program.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; {', '.join(map(repr, IMPLS))} is expected")
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, x in (given | {"initial_state": initial_state}).items():
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is {x.dtype}; real numbers of a floating-point type are expected")
    if u.ndim != 3 or 0 in u.shape[1:]:
        raise ValueError(f"u has shape {u.shape}; (b, l, d) of at least one step and channel is expected")
    if A.ndim != 2 or not A.shape[1]:
        raise ValueError(f"A has shape {A.shape}; (d, n) with at least one state is expected")
    batch, length, channels = u.shape
    states = A.shape[-1]
    _check_shapes(
        {"delta": (delta, (batch, length, channels)), "z": (z, (batch, length, channels)), "A": (A, (channels, states))}
        | {"D": (D, (channels,)), "delta_bias": (delta_bias, (channels,))}
        | {"initial_state": (initial_state, (batch, channels, states))}
    )
    _check_values(A, delta)
    B, C = (_grouped(name, x, (batch, length), channels, states) for name, x in (("B", B), ("C", C)))
    if B.ndim == C.ndim == 4 and B.shape != C.shape:
        raise ValueError(f"B has {B.shape[2]} groups and C {C.shape[2]}; as many are expected")
    prepare = partial(_prepare, delta_softplus=delta_softplus, reverse=reverse)
    y, last = recurrence(prepare, u, delta, A, B, C, delta_bias, initial_state, impl=impl)
    # Checkpointed, so that for the backward pass the arguments are kept, and not each array on the way from them.
    y = jax.checkpoint(_output)(jnp.flip(y, 1) if reverse else y, u, D, z)
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
    """Take one step of `selective_scan` and give y and the state after it: a stream, in memory that does not grow.

    Args:
        B, C: at this step; constant ones of (d, n) are those of d groups, (1, d, n) broadcast to (b, d, n).

    Raises:
        ValueError: an argument's shape does not fit.
    """
    now = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    y, state = selective_scan(
        A=A,
        D=D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=state,
        return_last_state=True,
        impl="sequential",
        **{name: None if x is None else x[:, None] for name, x in now.items()},
    )
    return y[:, 0], state


def _prepare(u, delta, A, B, C, delta_bias, state, *, delta_softplus, reverse):
    """Give what `recurrence` runs, in the order in which it runs it."""
    dtype = jnp.dtype("float64" if u.dtype == jnp.float64 else "float32")
    u, delta, A, B, C = (x.astype(dtype) for x in (u, delta, A, B, C))
    # Zeros of the product, so that they are distributed over devices as it is.
    state = jnp.zeros_like(u[:, 0, :, None] * A[None]) if state is None else state.astype(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.astype(dtype)[None, None]
    if delta_softplus:
        delta = jax.nn.softplus(delta)
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


def _grouped(name: str, x: Array, rows: tuple[int, int], channels: int, states: int) -> Array:
    """Give B or C as (b, l, g, n), or as it is where it is constant."""
    if x.ndim == 3:
        x = x[:, :, None]
    groups = x.shape[2] if x.ndim == 4 else 1
    if x.ndim not in (2, 4) or not groups or channels % groups:
        raise ValueError(
            f"{name} has shape {x.shape}; (b, l, n), (b, l, g, n) with g groups that divide the {channels} channels, "
            "or constant (d, n) is expected"
        )
    _check_shapes({name: (x, (channels, states) if x.ndim == 2 else (*rows, groups, states))})
    return x


def _check_shapes(arguments: Mapping[str, tuple[Array | None, tuple[int, ...]]]) -> None:
    for name, (x, expected) in arguments.items():
        if x is None or x.shape == expected:
            continue
        axis = next((i for i, pair in enumerate(zip(x.shape, expected, strict=False)) if len(set(pair)) > 1), None)
        where = f"axis {axis} has {x.shape[axis]}" if axis is not None else f"it has {x.ndim} axes"
        raise ValueError(f"{name} has shape {x.shape}, {where}; {expected} is expected, which fits u and A")


def _check_values(A: Array, delta: Array) -> None:
    if not isinstance(A, jax.core.Tracer):
        _check_decay(A)
    if jax.config.jax_debug_nans:
        jax.debug.callback(_check_now, A, delta)


def _check_now(A: Array, delta: Array) -> None:
    _check_decay(A)
    if bad := int((~np.isfinite(np.asarray(delta, np.float32))).sum()):
        raise ValueError(f"delta holds {bad} values that are not finite")


def _check_decay(A: Array) -> None:
    if positive := int((np.asarray(A, np.float32) > 0).sum()):
        raise ValueError(f"A holds {positive} positive values, whose states would grow; A = -exp(A_log) is expected")
