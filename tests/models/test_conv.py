"""Convolutions equal PyTorch's, for every op that computes them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mambaout_jax.models.layers.conv import Conv2d, convolve_and_normalize, default_conv2d
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.patch_embed import PatchEmbed
from mambaout_jax.ops import conv2d

# (in, out, kernel, stride, padding, groups): each form, and what just misses it.
CASES = {
    "depthwise": (4, 4, 3, 1, 1, 4),
    "one channel": (1, 1, 3, 1, 1, 1),
    "depthwise without padding": (4, 4, 3, 1, 0, 4),
    "depthwise and strided": (4, 4, 3, 2, 1, 4),
    "channel multiplier": (2, 6, 3, 1, 1, 2),
    "groups": (4, 6, 3, 1, 1, 2),
    "strided": (3, 5, 3, 2, 1, 1),
    "strided 7x7": (3, 5, 7, 2, 3, 1),
    "strides that differ": (3, 5, 3, (2, 1), 1, 1),
    "paddings that differ": (3, 5, (1, 3), 1, (0, 1), 1),
    "patches": (3, 5, 4, 4, 0, 1),
    "rectangular patches": (3, 5, (2, 3), (2, 3), 0, 1),
    "patches that overlap": (3, 5, 4, 2, 0, 1),
    "patches with padding": (3, 5, 4, 4, 2, 1),
    "one pixel": (3, 5, 1, 1, 0, 1),
    "dense": (3, 5, 3, 1, 1, 1),
}


def pair(value):
    return (value, value) if isinstance(value, int) else value


def convolve(x, weight, stride, padding, groups):
    """Sum over the kernel in NumPy, group by group."""
    (sh, sw), (ph, pw), (kh, kw) = pair(stride), pair(padding), weight.shape[:2]
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    rows, columns = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    parts = []
    for inputs, kernel in zip(np.split(x, groups, -1), np.split(weight, groups, -1), strict=True):
        taps = (
            inputs[:, i : i + sh * (rows - 1) + 1 : sh, j : j + sw * (columns - 1) + 1 : sw] @ kernel[i, j]
            for i in range(kh)
            for j in range(kw)
        )
        parts.append(sum(taps))
    return np.concatenate(parts, -1)


def applied(module, params, x):
    graphdef = nnx.split(module)[0]
    return jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))(params, x)


@pytest.mark.parametrize("case", CASES)
def test_every_form_is_the_sum_over_the_kernel(case):
    in_chans, out_chans, kernel_size, stride, padding, groups = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 11, in_chans)).astype(np.float32)
    options = {"stride": stride, "padding": padding, "groups": groups}
    conv = Conv2d(in_chans, out_chans, kernel_size, **options, dtype=jnp.dtype("float32"))
    params = {name: rng.normal(size=getattr(conv, name).shape).astype(np.float32) for name in ("weight", "bias")}
    expected = convolve(x, params["weight"], **options) + params["bias"]
    actual = applied(conv, params, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_every_form_is_pytorchs(case):
    import torch

    in_chans, out_chans, kernel_size, stride, padding, groups = CASES[case]
    theirs = torch.nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, groups=groups, bias=False)
    conv = Conv2d(
        in_chans,
        out_chans,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        bias=False,
        dtype=jnp.dtype("float32"),
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 11, in_chans)).astype(np.float32)
    weight = theirs.weight.detach().numpy().transpose(2, 3, 1, 0)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    assert conv.bias is None
    np.testing.assert_allclose(applied(conv, {"weight": weight}, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", ["strided", "patches", "dense"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-5)])
def test_convolution_and_norm_are_one_after_the_other(case, bias, dtype, tolerance):
    in_chans, out_chans, kernel_size, stride, padding, _ = CASES[case]
    options = {"stride": stride, "padding": padding, "bias": bias, "dtype": jnp.dtype(dtype)}
    graphdef, state = nnx.split((Conv2d(in_chans, out_chans, kernel_size, **options), LayerNorm(out_chans)))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 11, in_chans)), dtype)
    params = jax.tree.map(lambda param: 1 + rng.normal(size=param.shape).astype(np.float32), state)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, params, x):
        y, vjp = jax.vjp(lambda params, x: function(*nnx.merge(graphdef, params), x), params, x)
        return y, vjp(jnp.cos(y))

    actual = value_and_gradients(convolve_and_normalize, params, x)
    expected = value_and_gradients(lambda conv, norm, x: norm(conv(x)), params, x)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.float32(a), np.float32(e)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())


def test_several_groups_cannot_be_centered():
    conv = Conv2d(4, 4, 3, groups=4, dtype=jnp.dtype("float32"))
    with pytest.raises(ValueError, match="one group"):
        conv(jnp.ones((1, 5, 5, 4)), centered=True)


def test_patches_are_tokens_row_by_row():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    params = {"proj": {"weight": rng.normal(size=(4, 4, 3, 5)), "bias": rng.normal(size=5)}}
    params = jax.tree.map(np.float32, params)
    expected = convolve(x, params["proj"]["weight"], 4, 0, 1) + params["proj"]["bias"]
    tokens = applied(PatchEmbed(default_conv2d(3, 5, 4, stride=4, dtype=jnp.dtype("float32"))), params, x)
    np.testing.assert_allclose(tokens, expected.reshape(2, -1, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "kernel", "groups"), [(6, (3, 3, 3, 8), 4), (6, (3, 3, 2, 8), 3), (6, (3, 3, 4, 8), 1)]
)
def test_groups_that_do_not_divide_the_channels_are_refused(channels, kernel, groups):
    with pytest.raises(ValueError, match="feature"):
        conv2d(jnp.ones((1, 5, 5, channels)), jnp.ones(kernel), groups=groups)
