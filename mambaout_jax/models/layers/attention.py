"""Multi-head self-attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.ops.remat import saveable


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(d / heads)) v in each head; the outputs of `qkv` are packed as (3, heads, d / heads).

    Args:
        causal: each token attends only to itself and the tokens before it.
    """

    def __init__(self, dim: int, num_heads: int, *, causal: bool = False, dtype: jnp.dtype):
        self.qkv = Linear(dim, 3 * dim, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)
        self.num_heads = num_heads
        self.causal = causal

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        d = x.shape[-1]
        heads = (part.reshape(*x.shape[:2], self.num_heads, -1) for part in self.qkv.apply_split(x, [d, 2 * d]))
        # Products are accumulated in float32, and the softmax is float32, for every dtype of x.
        y = jax.nn.dot_product_attention(*heads, is_causal=self.causal)
        return self.proj(saveable(y.reshape(x.shape)))
