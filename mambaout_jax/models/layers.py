"""Layers with timm's parameter names and channels last.

A layer describes its parameters, shape and initializer, and allocates nothing: `Model.init` draws them all at
once. Parameters are float32; `dtype` is what matrix products and convolutions compute in.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError

# An initializer maps standard normal noise of the parameter's shape to its values. `Model.init` draws the noise of all
# parameters at once: a draw each would take the compiler half a second each.
Initializer = Callable[[Float[Array, "..."]], Float[Array, "..."]]

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def normal(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale to N(0, 0.02).

    The reference writes `trunc_normal_(std=.02)`, which truncates at +-2, a hundred standard deviations out: a plain
    normal in effect.
    """
    return 0.02 * noise


def constant(value: float) -> Initializer:
    """Return the initializer that fills with `value`."""
    return partial(jnp.full_like, fill_value=value)


zeros, ones = constant(0.0), constant(1.0)


def parameter(shape: tuple[int, ...], initializer: Initializer) -> nnx.Param:
    """Describe a float32 parameter; `Model.init` calls the initializer."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def per_channel(value: nnx.Param, x: Float[Array, "*batch d"]) -> Float[Array, "... d"]:
    """Give a vector of parameters the rank and dtype of x, to be broadcast along its last axis."""
    return value.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def activation(name: str) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Look up an activation by timm's name; GELU is the exact one, by the error function.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"act_layer {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(nnx.Module):
    """Multiply the last axis by `weight` (in, out) and add `bias`."""

    def __init__(self, in_features: int, out_features: int, *, dtype: jnp.dtype):
        self.weight = parameter((in_features, out_features), normal)
        self.bias = parameter((out_features,), zeros)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = x.astype(self.dtype) @ self.weight.astype(self.dtype)
        return y + per_channel(self.bias, y)


class Conv2d(nnx.Module):
    """Convolve 3x3 with stride 2; `weight` is (kh, kw, in, out).

    One row of zeros on each side, as PyTorch's padding=1 has it: "SAME" pads only the far side of even maps.
    """

    def __init__(self, in_chans: int, out_chans: int, *, dtype: jnp.dtype):
        self.weight = parameter((3, 3, in_chans, out_chans), normal)
        self.bias = parameter((out_chans,), zeros)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo o"]:
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.weight.astype(self.dtype),
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + per_channel(self.bias, y)


class LayerNorm(nnx.Module):
    """Normalise the last axis with eps 1e-6; statistics in float32, the result in the input's dtype."""

    def __init__(self, dim: int):
        self.weight = parameter((dim,), ones)
        self.bias = parameter((dim,), zeros)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        # Of the centred values, not E[x^2] - E[x]^2, which loses its digits when the variance is small.
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        return (y * per_channel(self.weight, y) + per_channel(self.bias, y)).astype(x.dtype)


class LayerScale(nnx.Module):
    """Scale each channel by a learned `gamma`."""

    def __init__(self, dim: int, init_value: float):
        self.gamma = parameter((dim,), constant(init_value))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return x * per_channel(self.gamma, x)


def drop_path(x: Float[Array, "b h w d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b h w d"]:
    """Zero the branch of a sample with probability `rate` and divide the survivors by 1 - rate.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016. Without a key nothing is dropped.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1, 1))
    return x * (keep / (1.0 - rate)).astype(x.dtype)


def dropout(x: Float[Array, "b d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b d"]:
    """Zero elements with probability `rate` and divide the survivors by 1 - rate; without a key do nothing."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return x * (keep / (1.0 - rate)).astype(x.dtype)
