"""Batch normalization trains like PyTorch's, for every execution of blocks and any number of devices.

The reference is NumPy in float64, differentiated by complex steps; PyTorch itself is compared where it is installed.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mambaout_jax import models
from mambaout_jax.models.layers.blocks import run_blocks
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.norm import BatchNorm
from mambaout_jax.models.options import REMAT

ROOT = Path(__file__).parents[2]
CHANNELS, DEPTH, STEPS, LEARNING_RATE, MOMENTUM, EPS = 2, 3, 3, 0.5, 0.1, 1e-3
WAYS = [(scan, remat) for scan in (False, True) for remat in REMAT]


class Block(nnx.Module):
    """A convolution with batch normalization and a shortcut."""

    def __init__(self):
        self.conv = Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, dtype=jnp.dtype("float32"))
        self.bn = BatchNorm(CHANNELS, eps=EPS, momentum=MOMENTUM)

    def __call__(self, x, key=None, drop_path_rate=0.0):
        return x + self.bn(self.conv(x))


@pytest.mark.slow
def test_statistics_that_are_numpy_arrays_are_updated_under_a_gradient():
    block = models.Functional(BatchNorm(CHANNELS))
    variables = jax.tree.map(np.asarray, block.init(jax.random.key(0)))
    x = jnp.arange(6.0).reshape(3, CHANNELS)

    def loss(params):
        module = nnx.merge(block._graphdef, params, variables["batch_stats"])
        module.train()
        return module(x).sum(), module.running_mean[...]

    _, mean = jax.grad(loss, has_aux=True)(variables["params"])
    np.testing.assert_allclose(mean, 0.1 * x.mean(0), rtol=1e-6)


class Net(nnx.Module):
    """A few blocks."""

    feature_channels, feature_strides = (CHANNELS,), (1,)
    first_conv, classifier = ("blocks", 0, "conv"), ()

    def __init__(self, *, scan, remat):
        self.blocks = nnx.List(Block() for _ in range(DEPTH))
        self.scan = scan
        self.remat = remat

    def logits(self, images, key):
        return self.features(images, key)[0].mean((1, 2))

    def features(self, images, key):
        return [run_blocks(self.blocks, images, key, (0.0,) * DEPTH, first=0, scan=self.scan, remat=self.remat)]


def build(scan=False, remat="none"):
    spec = models.InputSpec((0.5,) * CHANNELS, (0.5,) * CHANNELS, (32, 32), 1.0, "center", "bicubic")
    options = {"num_classes": CHANNELS, "in_chans": CHANNELS}
    family = models.Family("net", Net, {}, {}, ())
    return models.Model(Net(scan=scan, remat=remat), name="net", family=family, input_spec=spec, options=options)


@functools.cache
def data(batch=2):
    """Draw variables, images of a large mean, and the weights of a loss."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, CHANNELS, CHANNELS), "scale": (CHANNELS,), "shift": (CHANNELS,)}
    params = [{name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()} for _ in range(DEPTH)]
    stats = [{"mean": rng.normal(size=CHANNELS), "var": rng.uniform(0.5, 2, CHANNELS)} for _ in range(DEPTH)]
    images, weights = (rng.normal(size=(batch, 32, 32, CHANNELS)) for _ in range(2))
    return params, stats, images + 3, weights / weights.size


def variables_of(params, stats):
    blocks = {
        index: {"conv": {"weight": p["conv"]}, "bn": {"weight": p["scale"], "bias": p["shift"]}}
        for index, p in enumerate(params)
    }
    running = {index: {"bn": {"running_mean": s["mean"], "running_var": s["var"]}} for index, s in enumerate(stats)}
    tree = {"params": {"blocks": blocks}, "batch_stats": {"blocks": running}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def loss_of(model, weights):
    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        (x,), batch_stats = model.apply_train(variables, images, output="features")
        return (jnp.asarray(weights, jnp.float32) * x**2).sum(), (x, batch_stats)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def numpy_forward(params, stats, x, *, training):
    """Compute the net as PyTorch documents it."""
    updated = []
    for p, s in zip(params, stats, strict=True):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = ((i, j) for i in range(3) for j in range(3))
        y = sum(padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ p["conv"][i, j] for i, j in taps)
        mean, var = (y.mean((0, 1, 2)), ((y - y.mean((0, 1, 2))) ** 2).mean((0, 1, 2))) if training else s.values()
        count = y.size // CHANNELS
        updated.append(
            {
                "mean": (1 - MOMENTUM) * s["mean"] + MOMENTUM * mean,
                "var": (1 - MOMENTUM) * s["var"] + MOMENTUM * var * count / (count - 1),
            }
        )
        x = x + (y - mean) / np.sqrt(var + EPS) * p["scale"] + p["shift"]
    return x, updated


def numpy_gradient(params, stats, images, weights):
    """Differentiate by complex steps, which is exact."""

    def slope(block, name, position):
        moved = [dict(p) for p in params]
        moved[block][name] = params[block][name].astype(complex)
        moved[block][name][position] += 1e-30j
        return (weights * numpy_forward(moved, stats, images, training=True)[0] ** 2).sum().imag / 1e-30

    return [
        {name: np.vectorize(lambda *at, b=b, n=name: slope(b, n, at))(*np.indices(v.shape)) for name, v in p.items()}
        for b, p in enumerate(params)
    ]


@functools.cache
def numpy_training():
    """Take steps of gradient descent; return output, gradient and running statistics of each."""
    params, stats, images, weights = data()
    steps = []
    for _ in range(STEPS):
        gradient = numpy_gradient(params, stats, images, weights)
        output, stats = numpy_forward(params, stats, images, training=True)
        params = [
            {name: p[name] - LEARNING_RATE * g[name] for name in p} for p, g in zip(params, gradient, strict=True)
        ]
        steps.append((output, variables_of(gradient, stats)))
    return steps


def train(model):
    """Take the same steps."""
    params, stats, images, weights = data()
    variables = variables_of(params, stats)
    params, stats = variables["params"], variables["batch_stats"]
    grad_fn, steps = loss_of(model, weights), []
    for _ in range(STEPS):
        (_, (output, stats)), gradient = grad_fn(params, stats, jnp.asarray(images, jnp.float32))
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)
        steps.append((output, {"params": gradient, "batch_stats": stats}))
    return steps


def assert_close(actual, expected, tolerance=2e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize(("scan", "remat"), WAYS)
def test_training_equals_the_reference_however_blocks_run(scan, remat):
    for actual, expected in zip(train(build(scan, remat)), numpy_training(), strict=True):
        assert_close(actual, expected)


@pytest.mark.torch
def test_training_equals_pytorch():
    import torch

    class TorchBlock(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(CHANNELS, eps=EPS, momentum=MOMENTUM)

        def forward(self, x):
            return x + self.bn(self.conv(x))

    params, stats, images, weights = data()
    net = torch.nn.Sequential(*(TorchBlock() for _ in range(DEPTH))).double()
    for block, p, s in zip(net, params, stats, strict=True):
        values = (p["conv"].transpose(3, 2, 0, 1), p["scale"], p["shift"], s["mean"], s["var"])
        keys = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        named = {key: torch.tensor(value) for key, value in zip(keys, values, strict=True)}
        block.load_state_dict(named | {"bn.num_batches_tracked": torch.tensor(0)})
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)
    for output, expected in train(build()):
        optimizer.zero_grad()
        x = net(torch.tensor(images.transpose(0, 3, 1, 2)))
        (torch.tensor(weights.transpose(0, 3, 1, 2)) * x**2).sum().backward()
        optimizer.step()
        gradient = [
            {"conv": b.conv.weight.grad.numpy().transpose(2, 3, 1, 0), "scale": b.bn.weight.grad.numpy(),
             "shift": b.bn.bias.grad.numpy()} for b in net
        ]  # fmt: skip
        running = [{"mean": b.bn.running_mean.numpy(), "var": b.bn.running_var.numpy()} for b in net]
        assert_close(output, x.detach().numpy().transpose(0, 2, 3, 1))
        assert_close(expected, variables_of(gradient, running))


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full")])
def test_inference_normalizes_by_running_statistics(scan, remat):
    params, stats, images, _ = data()
    (x,) = jax.jit(functools.partial(build(scan, remat).apply, output="features"))(
        variables_of(params, stats), jnp.asarray(images, jnp.float32)
    )
    assert_close(x, numpy_forward(params, stats, images, training=False)[0])


def test_accumulation_updates_statistics_once_per_microbatch():
    params, stats, images, _ = data(6)
    model, variables = build(scan=True, remat="save_matmuls"), variables_of(params, stats)

    @jax.jit
    def accumulate(params, stats, images):
        def body(stats, images):
            x, stats = model.apply_train({"params": params, "batch_stats": stats}, images, output="features")
            return stats, x[0]

        return jax.lax.scan(body, stats, images)

    microbatches = images.reshape(3, 2, *images.shape[1:])
    after, outputs = accumulate(variables["params"], variables["batch_stats"], jnp.asarray(microbatches, jnp.float32))
    for microbatch, output in zip(microbatches, outputs, strict=True):
        expected, stats = numpy_forward(params, stats, microbatch, training=True)
        assert_close(output, expected)
    assert_close(after, variables_of(params, stats)["batch_stats"])


def compare_devices() -> None:
    """Compare gradients and statistics of one device with those of eight, which a batch of 8 is split over."""
    params, stats, images, weights = data(8)
    variables, images = variables_of(params, stats), jnp.asarray(images, jnp.float32)
    grad_fn = loss_of(build(scan=True, remat="full"), weights)
    expected = jax.device_get(grad_fn(variables["params"], variables["batch_stats"], images))
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
            replicated = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.P()))
            actual = grad_fn(replicated["params"], replicated["batch_stats"], jax.device_put(images, sharding))
        assert_close(jax.device_get(actual), expected, 1e-5)


@pytest.mark.run
def test_statistics_are_those_of_the_batch_on_all_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from tests.models.test_batch_norm import compare_devices; compare_devices()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bfloat16_has_float32_statistics():
    graphdef, _ = nnx.split(BatchNorm(4))

    @jax.jit
    def run(x):
        values = {name: jnp.ones(4) for name in ("weight", "bias")}
        bn = nnx.merge(graphdef, values, {"running_mean": jnp.zeros(4), "running_var": jnp.ones(4)})
        bn.train()
        return bn(x), bn.running_mean[...], bn.running_var[...]

    x = np.random.default_rng(0).normal(100, 0.5, size=(64, 4)).astype(jnp.bfloat16)
    y, mean, var = run(x)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, 0.1 * exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5) + 1
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=2**-8)


def test_one_value_per_channel_has_no_variance():
    graphdef, _ = nnx.split(BatchNorm(4))
    bn = nnx.merge(graphdef, {name: jnp.ones(4) for name in ("weight", "bias", "running_mean", "running_var")})
    assert bn(jnp.zeros((1, 4))).shape == (1, 4)
    bn.train()
    with pytest.raises(models.ModelError, match="at least 2 values per channel; got 1: use a larger microbatch"):
        bn(jnp.zeros((1, 4)))
