"""The SSM layer computes its recurrence and has the initial values of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mambaout_jax.models.layers.parameters import uniform_within
from mambaout_jax.models.layers.selective_ssm import SelectiveSSM, scan_2d
from mambaout_jax.ops import SCAN_ORDERS


def build(channels=6, dtype="float32", **options):
    """Return a function that runs the layer, its parameters, and the state that `Model.init` would draw them for."""
    layer = SelectiveSSM(channels, dtype=jnp.dtype(dtype), **options)
    graphdef, state = nnx.split(layer)
    flat = dict(nnx.to_flat_state(state))
    params = nnx.traversals.unflatten_mapping(
        {
            path: variable.initializer(jax.random.normal(key, variable.shape))
            for (path, variable), key in zip(flat.items(), jax.random.split(jax.random.key(0), len(flat)), strict=True)
        }
    )
    return lambda params: nnx.merge(graphdef, params), params


def moved(params, scale=0.3):
    rng = np.random.default_rng(1)  # JAX compiles a program for each shape
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(leaf.dtype), params)


def sequence(channels=6, length=9, batch=2):
    return jax.random.normal(jax.random.key(2), (batch, length, channels))


def by_loop(params, x, reverse=False):
    """Run the recurrence of the equations in float64, one place after the other."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rank, (_, n) = p["dt_proj"]["weight"].shape[0], p["A_log"].shape
    x, y = np.asarray(x, np.float64), np.empty(x.shape)
    for b in range(x.shape[0]):
        h = np.zeros(p["A_log"].shape)
        for t in range(x.shape[1])[:: -1 if reverse else 1]:
            dt, B, C = np.split(x[b, t] @ p["x_proj"]["weight"], [rank, rank + n])
            delta = np.log1p(np.exp(dt @ p["dt_proj"]["weight"] + p["dt_proj"]["bias"]))
            h = np.exp(-delta[:, None] * np.exp(p["A_log"])) * h + (delta * x[b, t])[:, None] * B
            y[b, t] = h @ C + p["D"] * x[b, t]
    return y


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", [{}, {"d_state": 3, "dt_rank": 4}])
def test_layer_is_its_recurrence(options, reverse):
    merge, params = build(**options)
    params = moved(params)
    with jax.default_matmul_precision("highest"):
        y = jax.jit(lambda p, x: merge(p)(x, reverse=reverse))(params, sequence())
    np.testing.assert_allclose(y, by_loop(params, sequence(), reverse), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gate_is_silu_of_z():
    merge, params = build()
    x, z = sequence(), 3 * sequence()[::-1]
    gated, plain = jax.jit(lambda p: (merge(p)(x, z), merge(p)(x)))(moved(params))
    np.testing.assert_allclose(gated, plain * jax.nn.silu(z), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 6])
def test_steps_equal_the_scan(batch):
    merge, params = build()
    params, x = moved(params), sequence(batch=batch)
    whole = jax.jit(lambda p: merge(p)(x, x))(params)
    step = jax.jit(lambda p, state, x: merge(p).step(state, x, x))
    state = jnp.zeros((batch, 6, 16))
    for t in range(x.shape[1]):
        y, state = step(params, state, x[:, t])
        np.testing.assert_allclose(y, whole[:, t], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "rank"), [(16, 1), (17, 2), (96, 6)])
def test_rank_is_a_sixteenth_rounded_up(channels, rank):
    _, params = build(channels)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {
        "x_proj": {"weight": (channels, rank + 32)},
        "dt_proj": {"weight": (rank, channels), "bias": (channels,)},
        "A_log": (channels, 16),
        "D": (channels,),
    }


@pytest.mark.slow
def test_initial_values_are_the_references():
    _, params = build(2048, dt_rank=128)
    np.testing.assert_allclose(params["A_log"], np.broadcast_to(np.log(np.arange(1, 17)), (2048, 16)), rtol=1e-6)
    np.testing.assert_array_equal(params["D"], np.ones(2048))
    for values, bound in ((params["x_proj"]["weight"], 2048**-0.5), (params["dt_proj"]["weight"], 128**-0.5)):
        assert_uniform(values, -bound, bound)
    dt = np.log1p(np.exp(np.asarray(params["dt_proj"]["bias"], np.float64)))
    assert_uniform(np.log(dt), np.log(1e-3), np.log(1e-1), slack=1e-5)


def assert_uniform(values, low, high, slack=1e-6):
    """Compare with the uniform distribution, by a Kolmogorov-Smirnov test at about 1e-6."""
    share = np.sort((np.ravel(values) - low) / (high - low))
    assert share[0] >= -slack
    assert share[-1] <= 1 + slack
    assert np.abs(share - (np.arange(share.size) + 0.5) / share.size).max() < 2.7 / np.sqrt(share.size)


def test_uniform_values_reach_their_bounds_and_no_further():
    values = uniform_within(0.5)(jnp.array([-40.0, 0.0, 40.0]))
    np.testing.assert_allclose(values, [-0.5, 0.0, 0.5], atol=1e-7)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_states_and_decay_high():
    (low, params), (high, _) = build(64, dtype="bfloat16"), build(64)
    x = sequence(64, 50)
    params = moved(params, 0.1)
    y, exact = jax.jit(lambda p: (low(p)(x), high(p)(x)))(params)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert 0 < float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 0.03 * float(jnp.abs(exact).max())
    y_t, state = jax.jit(lambda p: low(p).step(jnp.zeros((2, 64, 16)), x[:, 0]))(params)
    assert (y_t.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


def reached(scan_order, size=(3, 4)):
    """Tell which pixels (second axis) each pixel of the output (first axis) depends on, by gradient."""
    merge, params = build(2)
    params = [moved(params, 0.1 * (index + 1)) for index in range(len(SCAN_ORDERS[scan_order]))]
    x = jax.random.normal(jax.random.key(4), (1, *size, 2))

    def outputs(x):
        return scan_2d([merge(p) for p in params], x, scan_order).sum((0, 3)).reshape(-1)

    return np.abs(jax.jit(jax.jacrev(outputs))(x)).sum((1, -1)).reshape(size[0] * size[1], -1) > 0


@pytest.mark.slow
def test_causal_order_sees_earlier_pixels_alone():
    np.testing.assert_array_equal(reached("causal"), np.tri(12, dtype=bool))


@pytest.mark.slow
@pytest.mark.parametrize("scan_order", ["bidirectional", "cross"])
def test_other_orders_see_every_pixel(scan_order):
    assert reached(scan_order).all()


def test_cross_order_treats_a_map_and_its_transpose_alike():
    merge, params = build(2)
    params = [moved(params, 0.2 * (index + 1)) for index in range(4)]
    x = jax.random.normal(jax.random.key(4), (1, 3, 5, 2))

    def run(x, order):
        return scan_2d([merge(params[index]) for index in order], x, "cross")

    plain, turned = jax.jit(lambda x: (run(x, (0, 1, 2, 3)), run(x.swapaxes(1, 2), (2, 3, 0, 1))))(x)
    np.testing.assert_allclose(plain, turned.swapaxes(1, 2), rtol=1e-5, atol=1e-6)
