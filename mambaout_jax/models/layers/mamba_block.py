"""The Mamba block with and without its state space model, as compared by MambaOut.

Reference: github.com/state-spaces/mamba at e9594ce1, mamba_ssm/modules/mamba_simple.py; Yu and Wang, MambaOut: Do We
Really Need Mamba for Vision?, CVPR 2025, equations 8 to 11.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.conv import CausalConv1d
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.parameters import uniform_within
from mambaout_jax.models.layers.selective_ssm import SelectiveSSM
from mambaout_jax.models.options import DTYPES, dtype_name, require
from mambaout_jax.ops import SCAN_IMPLS


class BlockState(NamedTuple):
    """The recurrent state of a block.

    Args:
        window: the last d_conv - 1 inputs of the convolution.
        ssm: the state of the SSM; None in a block without SSM.
    """

    window: Float[Array, "b k e"]
    ssm: Float[Array, "b e n"] | None


class MambaBlock(nnx.Module):
    """A sequence mixer: out_proj(SSM(SiLU(conv(x))) * SiLU(z)) with (x, z) = in_proj(input).

    Without the SSM it is out_proj(conv(x) * SiLU(z)). The convolution is causal and depthwise. The norm and the
    residual connection are not included.

    Args:
        d_model: input and output channels.
        d_state: states per inner channel.
        d_conv: kernel size of the convolution.
        expand: ratio of inner channels to d_model.
        dt_rank: width of the step size projection; None for d_model / 16, rounded up.
        bias: whether in_proj and out_proj have a bias.
        conv_bias: whether the convolution has a bias.
        ssm: False for the block without its SSM.
        scan_impl: implementation of the scan, as in `selective_scan`.
        dtype: float32 or bfloat16, for matrix products and the convolution.

    Raises:
        ModelError: an option is out of range.
    """

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
        scan_impl: str = "auto",
        dtype: Any = "float32",
    ):
        require.counts(d_model=d_model, d_state=d_state, d_conv=d_conv, dt_rank=1 if dt_rank is None else dt_rank)
        require.ratio("expand", expand, d_model)
        require.choice("scan_impl", scan_impl, SCAN_IMPLS)
        require.choice("dtype", dtype_name(dtype), DTYPES)
        dtype, d_inner = jnp.dtype(dtype), int(expand * d_model)

        def linear(inputs: int, outputs: int) -> Linear:
            initializer = uniform_within(inputs**-0.5)
            return Linear(
                inputs, outputs, bias=bias, initializer=initializer, bias_initializer=initializer, dtype=dtype
            )

        self.in_proj = linear(d_model, 2 * d_inner)
        self.conv1d = CausalConv1d(d_inner, d_conv, bias=conv_bias, dtype=dtype)
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.ssm = SelectiveSSM(d_inner, d_state=d_state, dt_rank=rank, impl=scan_impl, dtype=dtype) if ssm else None
        self.out_proj = linear(d_inner, d_model)

    @property
    def no_decay(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of parameters without weight decay, in addition to all vectors."""
        return () if self.ssm is None else (("ssm", "A_log"),)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Compute the output of whole sequences.

        Raises:
            ModelError: the sequences are empty or have the wrong number of channels.
        """
        d_model = self.in_proj.weight.shape[0]
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != d_model:
            raise ModelError(f"sequences have shape {x.shape}; expected (batch, length >= 1, {d_model})")
        x, z = self._split(x)
        x = self.conv1d(x)
        return self.out_proj(x * jax.nn.silu(z) if self.ssm is None else self.ssm(jax.nn.silu(x), z))

    def initial_state(self, batch_size: int) -> BlockState:
        """Return the state at the start of a sequence."""
        window, _, d_inner = self.conv1d.weight.shape
        ssm = None if self.ssm is None else jnp.zeros((batch_size, *self.ssm.A_log.shape), jnp.float32)
        return BlockState(jnp.zeros((batch_size, window - 1, d_inner), self.conv1d.dtype), ssm)

    def step(self, state: BlockState, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], BlockState]:
        """Compute the output at the next position of each sequence and the next state, in constant memory.

        The outputs equal those of `__call__` on the whole sequence.

        Raises:
            ModelError: the number of channels is wrong.
        """
        d_model = self.in_proj.weight.shape[0]
        if x.ndim != 2 or x.shape[1] != d_model:
            raise ModelError(f"the inputs of a step have shape {x.shape}; expected (batch, {d_model})")
        x, z = self._split(x)
        x, window = self.conv1d.step(state.window, x)
        if self.ssm is None:
            return self.out_proj(x * jax.nn.silu(z)), BlockState(window, None)
        y, ssm = self.ssm.step(state.ssm, jax.nn.silu(x), z)
        return self.out_proj(y), BlockState(window, ssm)

    def _split(self, x):
        return self.in_proj.apply_split(x, [self.out_proj.weight.shape[0]])
