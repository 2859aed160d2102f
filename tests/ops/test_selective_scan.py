import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mambaout_jax.ops import selective_scan, selective_scan_step
from mambaout_jax.ops.recurrence import compose
from mambaout_jax.ops.selective_scan import IMPLS
from tests.marks import slow_but

LENGTHS = (1, 2, 7, 64, 197, 1000)
ALONG_THE_SEQUENCE = ("u", "delta", "B", "C", "z")


def draw(batch, length, channels, states, *, groups=None, constant=False, seed=0, dtype=np.float32):
    """Draw arguments; B and C have no group axis if groups is None."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    rows = () if groups is None else (groups,)
    shape = (channels, states) if constant else (batch, length, *rows, states)
    arguments = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -np.exp(normal(channels, states)),
        "B": normal(*shape),
        "C": normal(*shape),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels) - 1,
        "initial_state": normal(batch, channels, states),
    }
    return jax.tree.map(jnp.asarray, arguments)


def loop(u, delta, A, B, C, D, z, delta_bias, initial_state, reverse=False):
    """Compute y and the last state in float64, step by step and channel by channel, by the definition."""
    u, delta, A, B, C, D, z, delta_bias, h = (
        np.asarray(x, np.float64) for x in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )
    delta = np.logaddexp(0, delta + delta_bias)
    y = np.zeros_like(u)
    h = h.copy()
    steps = range(u.shape[1])
    for t in reversed(steps) if reverse else steps:
        for c in range(u.shape[2]):
            B_t, C_t = (of_channel(x, t, c, u.shape[2]) for x in (B, C))
            h[:, c] = np.exp(delta[:, t, c, None] * A[c]) * h[:, c] + (delta[:, t, c] * u[:, t, c])[:, None] * B_t
            y[:, t, c] = (h[:, c] * C_t).sum(-1) + D[c] * u[:, t, c]
    return y * z / (1 + np.exp(-z)), h


def of_channel(x, t, c, channels):
    if x.ndim == 2:
        return x[c]
    return x[:, t] if x.ndim == 3 else x[:, t, c // (channels // x.shape[2])]


@functools.partial(jax.jit, static_argnames=("impl", "reverse"))
def scan(arguments, impl="auto", reverse=False):
    return selective_scan(**arguments, delta_softplus=True, return_last_state=True, impl=impl, reverse=reverse)


def part_of(arguments, steps):
    """Slice the sequence in NumPy, because JAX compiles a program for each slice."""
    return {key: np.asarray(x)[:, steps] if key in ALONG_THE_SEQUENCE else x for key, x in arguments.items()}


def assert_close(actual, expected, rtol=2e-5):
    """Compare relative to the largest expected value."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=rtol * max(np.abs(e).max(), 1e-30))


def test_composition_is_associative_and_its_order_matters():
    rng = np.random.default_rng(0)
    p, q, r = (tuple(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)) for _ in range(3))
    np.testing.assert_allclose(compose(compose(p, q), r), compose(p, compose(q, r)), rtol=1e-5)
    assert not np.allclose(compose(p, q), compose(q, p))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_implementation_equals_the_loop(length, impl):
    arguments = draw(2, length, 3, 4)
    for reverse in {False, length in (7, 197)}:
        assert_close(scan(arguments, impl=impl, reverse=reverse), loop(**arguments, reverse=reverse))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [{"constant": True}, {"groups": 1}, {"groups": 2}, {"groups": 6}])
def test_groups_and_constants(impl, shape):
    arguments = draw(2, 20, 6, 3, **shape)
    assert_close(scan(arguments, impl=impl), loop(**arguments))


@pytest.mark.slow
def test_one_of_B_and_C_may_be_constant():
    arguments = draw(2, 9, 4, 3, groups=2) | {"C": draw(2, 9, 4, 3, constant=True, seed=1)["C"]}
    for impl in IMPLS:
        assert_close(scan(arguments, impl=impl), loop(**arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "reverse"),
    [
        pytest.param({}, False, marks=pytest.mark.nightly),
        ({"groups": 2}, True),
        pytest.param({"constant": True}, False, marks=pytest.mark.nightly),
    ],
)
def test_every_gradient_equals_that_of_the_loop(shape, reverse):
    arguments = draw(2, 133, 4, 3, **shape)
    weights = draw(2, 133, 4, 3, seed=1)

    def loss(arguments, impl):
        y, last = scan(arguments, impl=impl, reverse=reverse)
        return (y * weights["u"]).sum() + (last * weights["initial_state"]).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = gradient(arguments, "sequential")
    for impl in ("auto", "associative", "chunked"):
        assert_close(gradient(arguments, impl), expected)


@pytest.mark.slow
@pytest.mark.parametrize("impl", slow_but(["auto"], IMPLS))
def test_gradients_equal_finite_differences(impl):
    with jax.enable_x64(True):
        arguments = draw(1, 11, 4, 3, groups=2, dtype=np.float64)
        direction = draw(1, 11, 4, 3, groups=2, dtype=np.float64, seed=1)

        def loss(arguments):
            y, last = scan(arguments, impl=impl)
            return jnp.sin(y).sum() + (last**2).sum()

        value_and_gradient = jax.jit(jax.value_and_grad(loss))

        def at(step):
            return value_and_gradient(jax.tree.map(lambda x, by: x + step * by, arguments, direction))[0]

        # Of order four: the error is step ** 4 and rounding over step.
        step = 1e-3
        expected = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
        _, gradients = value_and_gradient(arguments)
        slope = sum((gradients[key] * direction[key]).sum() for key in gradients)
        np.testing.assert_allclose(slope, expected, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("impl", slow_but(["auto"], IMPLS))
def test_chained_parts_equal_the_whole_sequence(impl):
    arguments = draw(2, 140, 4, 3)
    whole, last = scan(arguments, impl=impl)
    state, parts = arguments["initial_state"], []
    for start, end in itertools.pairwise((0, 1, 131, 140)):
        y, state = scan(part_of(arguments, slice(start, end)) | {"initial_state": state}, impl=impl)
        parts.append(y)
    assert_close((np.concatenate(parts, 1), state), (whole, last))


@pytest.mark.parametrize("shape", [{}, {"groups": 2}])
def test_streaming_equals_scanning(shape):
    arguments = draw(2, 20, 4, 3, **shape)
    whole, last = jax.device_get(scan(arguments))
    step = jax.jit(lambda now: selective_scan_step(**now, delta_softplus=True))
    state = arguments.pop("initial_state")
    for t in range(20):
        y, state = step(part_of(arguments, t) | {"state": state})
        assert_close(y, whole[:, t])
    assert_close(state, last)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("impl", slow_but(["auto"], IMPLS))
def test_the_scan_is_causal(impl, reverse):
    arguments, t = draw(1, 40, 3, 2), 17

    def at(u, delta, B):
        return scan(arguments | {"u": u, "delta": delta, "B": B}, impl=impl, reverse=reverse)[0][:, t].sum()

    gradient_of = jax.jit(jax.grad(at, argnums=(0, 1, 2)))
    for gradient in gradient_of(arguments["u"], arguments["delta"], arguments["B"]):
        reached = np.abs(gradient[0]).sum(-1) > 0
        assert reached.tolist() == [s >= t if reverse else s <= t for s in range(40)]


@functools.cache
def long_and_exact():
    """Return arguments of long sequences in bfloat16, and the result in float64."""
    arguments = draw(1, 16_384, 2, 3)
    arguments["A"] = jnp.asarray([[-60.0], [-0.006]]) * jnp.ones((2, 3))
    arguments["delta"] = jnp.ones_like(arguments["delta"])
    del arguments["z"], arguments["delta_bias"], arguments["D"]
    low = {key: jnp.asarray(x, jnp.float32 if key == "A" else jnp.bfloat16) for key, x in arguments.items()}
    with jax.enable_x64(True):
        exact = {key: jnp.asarray(x, jnp.float64) for key, x in low.items()}
        expected = jax.jit(functools.partial(selective_scan, return_last_state=True, impl="sequential"))(**exact)
        assert expected[0].dtype == jnp.float64
        return low, jax.device_get(expected)


@pytest.mark.slow
@pytest.mark.parametrize("impl", slow_but(["auto", "sequential"], IMPLS))
def test_bfloat16_is_precise_for_long_sequences_and_strong_decay(impl):
    low, expected = long_and_exact()
    y, last = jax.jit(functools.partial(selective_scan, return_last_state=True, impl=impl))(**low)
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close((np.asarray(y, np.float64), last), expected, rtol=1e-2)


@pytest.mark.slow
@hypothesis.settings(max_examples=6)
@hypothesis.given(
    batch=st.integers(1, 3),
    length=st.integers(1, 140),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    states=st.integers(1, 4),
    impl=st.sampled_from(IMPLS),
    reverse=st.booleans(),
)
def test_any_shape_equals_the_loop(batch, length, groups, width, states, impl, reverse):
    arguments = draw(batch, length, groups * width, states, groups=groups, seed=length)
    assert_close(scan(arguments, impl=impl, reverse=reverse), loop(**arguments, reverse=reverse))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"u": np.zeros((2, 0, 4))}, r"u has shape \(2, 0, 4\); expected \(b, l, d\) of at least one step"),
        ({"u": np.zeros((2, 5, 4), np.uint8)}, "u is uint8; expected real numbers of a floating-point type"),
        ({"A": -np.ones((4, 2), np.complex64)}, "A is complex64; expected real numbers"),
        ({"delta": np.zeros((2, 6, 4))}, r"delta has shape \(2, 6, 4\), axis 1 has 6; expected \(2, 5, 4\)"),
        ({"A": -np.ones((3, 2))}, r"A has shape \(3, 2\), axis 0 has 3; expected \(4, 2\)"),
        ({"A": -np.ones((4, 0))}, r"A has shape \(4, 0\); expected \(d, n\) with at least one state"),
        ({"A": np.ones((4, 2))}, "A is positive at 8 of 8 positions"),
        ({"B": np.zeros((2, 5, 3))}, r"B has shape \(2, 5, 3\), axis 2 has 3; expected \(2, 5, 2\)"),
        ({"C": np.zeros((2, 5, 3, 2))}, "C has shape .*groups that divide the 4 channels"),
        ({"B": np.zeros((2, 5, 2, 2))}, "B has 2 groups and C has 1"),
        ({"D": np.zeros((4, 1))}, r"D has shape \(4, 1\), it has 2 axes; expected \(4,\)"),
        ({"initial_state": np.zeros((2, 4, 3))}, "initial_state has shape"),
        ({"impl": "fast"}, "impl is 'fast'; expected one of 'auto', 'sequential'"),
    ],
)
def test_invalid_arguments_are_named(change, sentence, no_type_checks):
    arguments = draw(2, 5, 4, 2)
    with pytest.raises(ValueError, match=sentence):
        selective_scan(**arguments | change)


def test_an_empty_batch_has_an_empty_result():
    y, last = scan(draw(0, 5, 4, 2))
    assert (y.shape, last.shape) == ((0, 5, 4), (0, 4, 2))


@pytest.mark.parametrize("impl", IMPLS)
def test_explicit_sharding_is_preserved(impl):
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))):
        arguments = draw(2, 5, 4, 2)
        del arguments["initial_state"]
        rows = jax.sharding.PartitionSpec("x")
        sharded = {key: jax.device_put(x, rows) if key in ALONG_THE_SEQUENCE else x for key, x in arguments.items()}
        assert_close(scan(sharded, impl=impl), scan(arguments, impl=impl))


@pytest.mark.slow
def test_nonfinite_delta_is_an_error_under_debug_nans():
    arguments = draw(1, 5, 2, 2)
    arguments["delta"] = arguments["delta"].at[0, 3].set(np.nan)
    scan(arguments)
    with jax.debug_nans(True), pytest.raises(Exception, match="delta is not finite at 2 of"):
        jax.block_until_ready(jax.jit(scan)(arguments))
