"""Linear layers, activations, and the MLP."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.parameters import Initializer, normal, parameter, zeros
from mambaout_jax.ops import gelu, matmul
from mambaout_jax.ops.channels import per_channel
from mambaout_jax.ops.remat import saveable

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """Return an activation function by timm's name; "gelu" is exact, computed with erf.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"act_layer {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(nnx.Module):
    """A matrix product over the last axis plus a bias; `weight` is (in, out)."""

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
        """Compute `jnp.split(self(x), at, -1)` as one matrix product per part, without copies."""
        x = x.astype(self.dtype)
        bounds = [0, *at, self.weight.shape[1]]
        return [self._matmul(x, slice(*pair)) for pair in itertools.pairwise(bounds)]

    def _matmul(self, x, outputs):
        y = matmul(x, self.weight[:, outputs].astype(self.dtype))
        return saveable(y if self.bias is None else y + per_channel(self.bias[outputs], y))

    def apply_concat(self, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch o"]:
        """Compute `self(jnp.concatenate(parts, -1))` as one matrix product per part, without the concatenation."""
        weights = jnp.split(self.weight.astype(self.dtype), np.cumsum([part.shape[-1] for part in parts[:-1]]))
        y = sum(matmul(part.astype(self.dtype), weight) for part, weight in zip(parts, weights, strict=True))
        return saveable(y if self.bias is None else y + per_channel(self.bias[...], y))


class Mlp(nnx.Module):
    """Two linear layers with an activation between them; the hidden width is int(ratio * dim)."""

    def __init__(self, dim: int, *, ratio: float = 4.0, act_layer: str = "gelu", dtype: jnp.dtype):
        hidden = int(ratio * dim)
        self.fc1 = Linear(dim, hidden, dtype=dtype)
        self.fc2 = Linear(hidden, dim, dtype=dtype)
        self.act_layer = act_layer

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return self.fc2(activation(self.act_layer)(self.fc1(x)))
