"""The Mamba block, and the same block without its state space model: the pair that MambaOut compares.

Reference: github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py; Yu and Wang, MambaOut: Do We
Really Need Mamba for Vision?, CVPR 2025, equations 8 to 11.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.api import Variables, draw_state
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.basic import Linear, parameter, uniform_within
from mambaout_jax.models.layers.selective_ssm import SelectiveSSM
from mambaout_jax.models.options import DTYPES, require_choice, require_counts, require_ratio


class BlockState(NamedTuple):
    """Hold all that a block remembers of a sequence.

    Args:
        window: the last d_conv - 1 inputs of the convolution.
        ssm: None in a block without one.
    """

    window: Float[Array, "b k e"]
    ssm: Float[Array, "b e n"] | None


class MambaBlock:
    """Mix the places of a sequence: out_proj(SSM(SiLU(conv(x))) * SiLU(z)) with (x, z) = in_proj of the input.

    Without the SSM it is out_proj(conv(x) * SiLU(z)). The convolution is causal and of each channel by itself. Norm and
    shortcut around the block are the caller's. `variables` is {"params": nested dict, "batch_stats": {}}, as a model's.

    Args:
        d_model: channels in and out.
        d_state: states of each inner channel.
        d_conv: taps of the convolution.
        expand: inner channels over d_model.
        dt_rank: None for a sixteenth of d_model, rounded up.
        bias: of in_proj and out_proj.
        conv_bias: of the convolution.
        ssm: False takes the state space model out.
        dtype: "float32" or "bfloat16", for matrix products and the convolution.

    Raises:
        ModelError: an option is out of its range.
    """

    name = "MambaBlock"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        ssm: bool = True,
        dtype: str = "float32",
    ):
        require_counts(d_model=d_model, d_state=d_state, d_conv=d_conv, dt_rank=1 if dt_rank is None else dt_rank)
        require_ratio("expand", expand, d_model)
        require_choice("dtype", dtype, DTYPES)
        d_inner = int(expand * d_model)
        module = _Block(
            d_model,
            d_inner,
            d_state=d_state,
            d_conv=d_conv,
            dt_rank=math.ceil(d_model / 16) if dt_rank is None else dt_rank,
            bias=bias,
            conv_bias=conv_bias,
            ssm=ssm,
            dtype=jnp.dtype(dtype),
        )
        self.d_model = d_model
        self._window = jax.ShapeDtypeStruct((d_conv - 1, d_inner), jnp.dtype(dtype))
        self._ssm_state = jax.ShapeDtypeStruct((d_inner, d_state), jnp.float32) if ssm else None
        graphdef, self._params = nnx.split(module)
        # Compiled here, so that a stream outside of jit is not traced at each place.
        self._whole = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))
        self._step = jax.jit(lambda params, state, x: nnx.merge(graphdef, params).step(state, x))
        # Paths of parameters that weight decay must not touch.
        self.no_decay = frozenset({("ssm", "A_log"), ("ssm", "D")} if ssm else ())

    def init(self, key: Key[Array, ""]) -> Variables:
        """Draw all variables."""
        return {"params": jax.jit(lambda key: draw_state(self._params, key))(key), "batch_stats": {}}

    def apply(self, variables: Variables, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Compute the output of whole sequences.

        Raises:
            ModelError: the sequences are empty or have another number of channels.
        """
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.d_model:
            raise ModelError(f"sequences have shape {x.shape}; (batch, length of 1 and up, {self.d_model}) is expected")
        return self._whole(variables["params"], x)

    def initial_state(self, batch_size: int) -> BlockState:
        """Give what the block remembers before a sequence begins."""
        state = BlockState(self._window, self._ssm_state)
        return jax.tree.map(lambda leaf: jnp.zeros((batch_size, *leaf.shape), leaf.dtype), state)

    def step(
        self, variables: Variables, state: BlockState, x: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b d"], BlockState]:
        """Compute the output of the next place in each sequence, and the state after it.

        Place by place it gives what `apply` gives of the whole, in memory that does not grow with the length.

        Raises:
            ModelError: there is another number of channels.
        """
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ModelError(f"places have shape {x.shape}; (batch, {self.d_model}) is expected")
        return self._step(variables["params"], state, x)


class CausalConv1d(nnx.Module):
    """Convolve each channel with k taps of its own, the last of which meets the present; `weight` is (k, 1, d)."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool, dtype: jnp.dtype):
        initializer = uniform_within(kernel_size**-0.5)
        self.weight = parameter((kernel_size, 1, channels), initializer)
        self.bias = parameter((channels,), initializer) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        before, length = self.weight.shape[0] - 1, x.shape[1]
        padded = jnp.pad(x, ((0, 0), (before, 0), (0, 0)))
        return self._sum(padded, length)

    def step(
        self, window: Float[Array, "b k d"], x: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k d"]]:
        """Compute the output of one place, and the window of inputs after it."""
        window = jnp.concatenate([window, x[:, None].astype(window.dtype)], axis=1)
        return self._sum(window, 1)[:, 0], window[:, 1:]

    def _sum(self, x, length):
        x = x.astype(self.dtype).astype(jnp.float32)
        y = sum(x[:, tap : tap + length] * self.weight[tap : tap + 1] for tap in range(self.weight.shape[0]))
        y = y if self.bias is None else y + self.bias[None, None, :]
        return y.astype(self.dtype)


class _Block(nnx.Module):
    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        bias: bool,
        conv_bias: bool,
        ssm: bool,
        dtype: jnp.dtype,
    ):
        def linear(inputs: int, outputs: int) -> Linear:
            initializer = uniform_within(inputs**-0.5)
            return Linear(
                inputs, outputs, bias=bias, initializer=initializer, bias_initializer=initializer, dtype=dtype
            )

        self.in_proj = linear(d_model, 2 * d_inner)
        self.conv1d = CausalConv1d(d_inner, d_conv, bias=conv_bias, dtype=dtype)
        self.ssm = SelectiveSSM(d_inner, d_state=d_state, dt_rank=dt_rank, dtype=dtype) if ssm else None
        self.out_proj = linear(d_inner, d_model)

    def __call__(self, x):
        x, z = self._split(x)
        x = self.conv1d(x)
        return self.out_proj(x * jax.nn.silu(z) if self.ssm is None else self.ssm(jax.nn.silu(x), z))

    def step(self, state: BlockState, x: Any) -> tuple[Any, BlockState]:
        x, z = self._split(x)
        x, window = self.conv1d.step(state.window, x)
        if self.ssm is None:
            return self.out_proj(x * jax.nn.silu(z)), BlockState(window, None)
        y, ssm = self.ssm.step(state.ssm, jax.nn.silu(x), z)
        return self.out_proj(y), BlockState(window, ssm)

    def _split(self, x):
        return self.in_proj.apply_split(x, [self.out_proj.weight.shape[0]])
