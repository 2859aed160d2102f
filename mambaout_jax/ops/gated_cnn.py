"""The Gated CNN block of MambaOut as a function of arrays, as operations of XLA or as kernels for TPUs."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from mambaout_jax.ops.activations import gelu
from mambaout_jax.ops.channels import per_channel
from mambaout_jax.ops.depthwise import depthwise_conv2d
from mambaout_jax.ops.kernel_choice import KERNELS, kernels, use_kernels
from mambaout_jax.ops.matmul import matmul
from mambaout_jax.ops.norm import layer_norm
from mambaout_jax.ops.pallas import gated_cnn_tpu
from mambaout_jax.ops.pallas.bands import call_kernel, for_tpu, is_supported, should_be_faster, whole_lanes
from mambaout_jax.ops.remat import saveable
from mambaout_jax.ops.sharding import spec_of, with_auto_axes


class GatedCNNWeights(NamedTuple):
    """Weights of a block with d channels, h hidden ones, and c of these convolved.

    Columns of `fc1_weight`, in order: gate of the h - c identity channels, gate of the c convolved channels, identity
    channels, convolved channels.
    """

    norm_weight: Float[Array, " d"]
    norm_bias: Float[Array, " d"]
    fc1_weight: Float[Array, "d 2*h"]
    fc1_bias: Float[Array, " 2*h"]
    conv_weight: Float[Array, "k k 1 c"]
    conv_bias: Float[Array, " c"]
    fc2_weight: Float[Array, "h d"]
    fc2_bias: Float[Array, " d"]
    layer_scale: Float[Array, " d"] | None = None


def gated_cnn_block(
    x: Float[Array, "b h w d"],
    weights: GatedCNNWeights,
    branch_scale: Float[Array, " b"] | None = None,
    *,
    eps: float,
    dtype: DTypeLike,
    act: Callable[[Array], Array] = gelu,
    mixer: Callable[[Array], Array] | None = None,
    impl: str = "auto",
) -> Float[Array, "b h w d"]:
    """Compute x + branch_scale * layer_scale * fc2(act(gate) * concat(identity, conv(value))), all from norm(x).

    Reference: Yu and Wang, MambaOut, 2025, equations 8 to 11.

    Args:
        branch_scale: factor of each sample's branch, without a gradient; 0 drops it.
        eps: of the LayerNorm.
        dtype: of products and convolutions.
        act: activation of the gate.
        mixer: applied to the convolved channels.
        impl: "xla", without any kernels; "pallas", which computes the block in one kernel and recomputes it from x in
            the backward pass, interpreted on other platforms (not under `shard_map`); or "auto", which follows
            `use_kernels` and is "pallas" where it applies and should be faster, if the mesh or the default device is
            a TPU. Kernels exist for GELU, square kernels of 3, 5 and 7, no mixer, x in `dtype`, and maps whose rows fit
            into VMEM.

    Raises:
        ValueError: `impl` is unknown, or "pallas" does not apply.
    """
    if impl not in KERNELS:
        raise ValueError(f"impl is {impl!r}; expected one of {', '.join(map(repr, KERNELS))}")
    chosen = kernels() if impl == "auto" else impl
    band = None
    if chosen != "xla" and act is gelu and mixer is None and x.dtype == dtype:
        band = _band_of(x, weights)
    if impl == "pallas" and band is None:
        raise ValueError(
            "impl 'pallas' needs GELU, no mixer, a kernel of 3, 5 or 7, x in the dtype of products and rows that fit "
            f"into VMEM; x has shape {x.shape} and dtype {x.dtype}; use 'auto' or 'xla'"
        )
    branch_scale = None if branch_scale is None else lax.stop_gradient(branch_scale)
    # Decided while tracing, by the mesh: under `lax.platform_dependent`, both forms would store their residuals.
    if band is not None and (chosen == "pallas" or (for_tpu() and should_be_faster(band, x))):
        scale = jnp.ones(x.shape[0]) if branch_scale is None else branch_scale
        return with_auto_axes(partial(_block, eps, chosen == "pallas"), x, scale, weights, out=spec_of(x))
    run = partial(_operations, eps, dtype, act, mixer)
    with use_kernels(impl):
        if mixer is not None:  # it may use arrays with Explicit axes
            return run(x, branch_scale, weights)
        return with_auto_axes(run, x, branch_scale, weights, out=spec_of(x))


def _operations(eps, dtype, act, mixer, x, branch_scale, weights):
    hidden, conv = weights.fc2_weight.shape[0], weights.conv_weight.shape[-1]
    normalized = layer_norm(x, weights.norm_weight, weights.norm_bias, eps).astype(dtype)
    # One product per part, without copies of their concatenation.
    bounds = [0, hidden - conv, hidden, 2 * hidden - conv, 2 * hidden]
    identity_gate, conv_gate, identity, value = (
        _linear(normalized, weights.fc1_weight[:, first:last].astype(dtype), weights.fc1_bias[first:last])
        for first, last in itertools.pairwise(bounds)
    )
    value = saveable(depthwise_conv2d(value, weights.conv_weight.astype(dtype), weights.conv_bias))
    if mixer is not None:
        value = mixer(value)
    parts = act(identity_gate) * identity, act(conv_gate) * value
    of_parts = jnp.split(weights.fc2_weight.astype(dtype), np.array([hidden - conv]))
    y = sum(matmul(part.astype(dtype), weight) for part, weight in zip(parts, of_parts, strict=True))
    y = saveable(y + per_channel(weights.fc2_bias, y))
    if weights.layer_scale is not None:
        y = y * per_channel(weights.layer_scale, y)
    if branch_scale is not None:
        y = y * branch_scale.astype(y.dtype)[:, None, None, None]
    return x + y


def _linear(x, weight, bias):
    y = matmul(x, weight)
    return saveable(y + per_channel(bias, y))


def _band_of(x, weights):
    """Return the sizes of the blocks of the forward kernel; None if the kernels do not apply."""
    size = len(weights.conv_weight)
    if not is_supported(x) or size not in (3, 5, 7):
        return None
    bands = gated_cnn_tpu.bands_of(x, whole_lanes(len(weights.fc2_weight)), whole_lanes(len(weights.conv_bias)), size)
    return None if bands is None else bands.forward


def _kernel_weights(weights: GatedCNNWeights) -> gated_cnn_tpu.Weights:
    """Return the weights of the kernels: with the norm's and LayerScale multiplied in, and whole groups of lanes."""
    hidden, conv = weights.fc2_weight.shape[0], weights.conv_weight.shape[-1]
    missing, lanes = whole_lanes(hidden) - hidden, whole_lanes(conv)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def convolved_first(x, axis):
        """Return hidden channels with those first that are convolved, and zeros at the end."""
        first, last = jnp.split(x, [hidden - conv], axis)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, missing)
        return jnp.pad(jnp.concatenate([last, first], axis), widths)

    gate, value = (
        (
            convolved_first(weights.norm_weight[:, None] * weight, 1),
            convolved_first(bias + product(weights.norm_bias, weight), 0)[None],
        )
        for weight, bias in zip(jnp.split(weights.fc1_weight, 2, axis=1), jnp.split(weights.fc1_bias, 2), strict=True)
    )
    scale = jnp.ones_like(weights.fc2_bias) if weights.layer_scale is None else weights.layer_scale
    size = len(weights.conv_weight)
    kernel = weights.conv_weight.reshape(size * size, conv)
    # The kernel of the other channels in these lanes is the identity.
    center = jnp.zeros((size * size, lanes - conv), kernel.dtype).at[size * size // 2].set(1)
    rows = jnp.concatenate([jnp.pad(weights.conv_bias, (0, lanes - conv))[None], jnp.concatenate([kernel, center], 1)])
    out = convolved_first(weights.fc2_weight * scale[None], 0), (weights.fc2_bias * scale)[None]
    return gated_cnn_tpu.Weights(*gate, *value, rows, *out)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block(eps, interpret, x, branch_scale, weights):
    return _fwd(eps, interpret, x, branch_scale, weights)[0]


def _fwd(eps, interpret, x, branch_scale, weights):
    forward = partial(gated_cnn_tpu.forward, eps=eps)
    y = call_kernel(forward, partial(_plain, eps), interpret, x, branch_scale, _kernel_weights(weights))
    return y, (x, branch_scale, weights)


def _bwd(eps, interpret, residuals, dout):
    x, branch_scale, weights = residuals
    kernel_weights, to_weights = jax.vjp(_kernel_weights, weights)
    backward = partial(gated_cnn_tpu.backward, eps=eps)
    arguments = x, branch_scale, kernel_weights, dout
    dx, dweights = call_kernel(backward, partial(_plain_vjp, eps), interpret, *arguments)
    return dx, jnp.zeros_like(branch_scale), *to_weights(dweights)


_block.defvjp(_fwd, _bwd)


def _plain(eps, x, branch_scale, weights):
    """Compute what the kernels compute, in float32."""
    conv, size = weights.conv.shape[1], math.isqrt(len(weights.conv))
    x32, (bias, kernel) = x.astype(jnp.float32), jnp.split(weights.conv, [1])
    normalized = layer_norm(x32, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), eps)
    gate = normalized @ weights.gate + per_channel(weights.gate_bias, x32)
    value = normalized @ weights.value + per_channel(weights.value_bias, x32)
    convolved = depthwise_conv2d(value[..., :conv], kernel.reshape(size, size, 1, conv), bias[0], impl="lax")
    mixed = gelu(gate) * jnp.concatenate([convolved, value[..., conv:]], -1)
    y = mixed @ weights.out + per_channel(weights.out_bias, x32)
    return (x32 + branch_scale[:, None, None, None] * y).astype(x.dtype)


def _plain_vjp(eps, x, branch_scale, weights, dout):
    return jax.vjp(lambda x, weights: _plain(eps, x, branch_scale, weights), x, weights)[1](dout)
