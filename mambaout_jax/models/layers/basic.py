"""Layers with timm's parameter names and channels last.

A layer describes its parameters, shape and initializer, and allocates nothing: `Model.init` draws them all at
once. Parameters are float32; `dtype` is what matrix products and convolutions compute in.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.ops import gelu, layer_norm, matmul, strided_conv2d

# An initializer maps standard normal noise of the parameter's shape to its values. `Model.init` draws the noise of all
# parameters at once: a draw each would take the compiler half a second each.
Initializer = Callable[[Float[Array, "..."]], Float[Array, "..."]]

SAVEABLE = "saveable"

ACTIVATIONS = {
    "gelu": gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def normal(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale to N(0, 0.02).

    The reference writes `trunc_normal_(std=.02)`, which truncates at +-2, a hundred standard deviations out: a plain
    normal in effect.
    """
    return 0.02 * noise


# Initializers of equal layers are one: otherwise the layers would not be equal to flax.
@functools.cache
def constant(value: float) -> Initializer:
    """Return the initializer that fills with `value`."""
    return functools.partial(jnp.full_like, fill_value=value)


zeros, ones = constant(0.0), constant(1.0)


def uniform(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Turn standard normal noise into U(0, 1), by the normal's distribution function."""
    return jax.scipy.special.ndtr(noise)


@functools.cache
def uniform_within(bound: float) -> Initializer:
    """Return the initializer of U(-bound, bound)."""
    return lambda noise: bound * (2 * uniform(noise) - 1)


def parameter(shape: tuple[int, ...], initializer: Initializer) -> nnx.Param:
    """Describe a float32 parameter; `Model.init` calls the initializer."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), initializer=initializer)


def per_channel(value: Float[Array, " d"] | nnx.Param, x: Float[Array, "*batch d"]) -> Float[Array, "... d"]:
    """Give a vector of parameters the rank and dtype of x, to be broadcast along its last axis."""
    return value.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def saveable(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Mark what the backward pass should find rather than compute again, where it does not find everything."""
    return checkpoint_name(x, SAVEABLE)


def activation(name: str) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Look up an activation by timm's name; GELU is the exact one, by the error function.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"act_layer {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(nnx.Module):
    """Multiply the last axis by `weight` (in, out) and add `bias`, where there is one."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        initializer: Initializer = normal,
        bias_initializer: Initializer = zeros,
        dtype: jnp.dtype,
    ):
        self.weight = parameter((in_features, out_features), initializer)
        self.bias = parameter((out_features,), bias_initializer) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.apply_split(x, [])[0]

    def apply_split(self, x: Float[Array, "*batch i"], at: Sequence[int]) -> list[Float[Array, "*batch _"]]:
        """Compute the outputs in the parts that `jnp.split` would cut, a product each: nothing is cut or copied."""
        x = x.astype(self.dtype)
        bounds = [0, *at, self.weight.shape[1]]
        return [self._product(x, slice(*pair)) for pair in itertools.pairwise(bounds)]

    def _product(self, x, outputs):
        y = matmul(x, self.weight[:, outputs].astype(self.dtype))
        return saveable(y if self.bias is None else y + per_channel(self.bias[outputs], y))

    def apply_concat(self, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch o"]:
        """Apply to the concatenation of parts, a product each, without concatenating them."""
        weights = jnp.split(self.weight.astype(self.dtype), np.cumsum([part.shape[-1] for part in parts[:-1]]))
        y = sum(matmul(part.astype(self.dtype), weight) for part, weight in zip(parts, weights, strict=True))
        return saveable(y if self.bias is None else y + per_channel(self.bias, y))


class Conv2d(nnx.Module):
    """Convolve 3x3 with stride 2; `weight` is (kh, kw, in, out).

    One row of zeros on each side, as PyTorch's padding=1 has it: "SAME" pads only the far side of even maps.
    """

    def __init__(self, in_chans: int, out_chans: int, *, dtype: jnp.dtype):
        self.weight = parameter((3, 3, in_chans, out_chans), normal)
        self.bias = parameter((out_chans,), zeros)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo o"]:
        y = strided_conv2d(x.astype(self.dtype), self.weight.astype(self.dtype), 2)
        return y + per_channel(self.bias, y)


class LayerNorm(nnx.Module):
    """Normalise the last axis with eps 1e-6; statistics in float32, the result in the input's dtype."""

    def __init__(self, dim: int):
        self.weight = parameter((dim,), ones)
        self.bias = parameter((dim,), zeros)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return layer_norm(x, self.weight[...], self.bias[...], 1e-6)


class LayerScale(nnx.Module):
    """Scale each channel by a learned `gamma`."""

    def __init__(self, dim: int, init_value: float):
        self.gamma = parameter((dim,), constant(init_value))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return x * per_channel(self.gamma, x)


def drop_path(
    x: Float[Array, "b *map d"], rate: float | Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, "b *map d"]:
    """Zero the branch of a sample with probability `rate` and divide the survivors by 1 - rate.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016. Without a key nothing is dropped.
    """
    if key is None:
        return x
    # In float32 whether the rate is a number here or an array in a loop, so that both draw the same.
    keep_rate = 1.0 - jnp.float32(rate)
    keep = jax.random.bernoulli(key, keep_rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (keep / keep_rate).astype(x.dtype)


def dropout(x: Float[Array, "b d"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b d"]:
    """Zero elements with probability `rate` and divide the survivors by 1 - rate; without a key do nothing."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return x * (keep / (1.0 - rate)).astype(x.dtype)
