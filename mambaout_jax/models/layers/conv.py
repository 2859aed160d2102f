"""Convolutions with PyTorch's padding."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.parameters import (
    Initializer,
    normal,
    parameter,
    uniform_within,
    zeros,
)
from mambaout_jax.ops import conv2d, depthwise_conv2d, matmul, strided_conv2d
from mambaout_jax.ops.channels import per_channel
from mambaout_jax.ops.remat import saveable

Pair = int | tuple[int, int]


class Conv2d(nnx.Module):
    """A 2-D convolution plus a bias; `weight` is (kh, kw, in / groups, out).

    Args:
        kernel_size, stride: an integer, or (vertical, horizontal).
        padding: zeros on each side, an integer or (vertical, horizontal), as in PyTorch. (XLA's "SAME" pads maps of
            even size at stride 2 only at the bottom and right.)
        groups: number of groups of channels that are convolved separately.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        initializer: Initializer = normal,
        bias_initializer: Initializer = zeros,
        dtype: jnp.dtype,
    ):
        self.weight = parameter((*_pair(kernel_size), in_chans // groups, out_chans), initializer)
        self.bias = parameter((out_chans,), bias_initializer) if bias else None
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"], *, centered: bool = False) -> Float[Array, "b ho wo o"]:
        """Compute the convolution.

        Args:
            centered: subtract the mean over the output channels, by centering kernel and bias; requires groups=1.
        """
        if centered and self.groups != 1:
            raise ValueError(f"centered convolutions have one group; got {self.groups}")
        weight, bias = self.weight[...], None if self.bias is None else self.bias[...]
        if centered:
            weight = weight - weight.mean(-1, keepdims=True)
            bias = None if bias is None else bias - bias.mean()
        x, weight = x.astype(self.dtype), weight.astype(self.dtype)
        kernel, channels = weight.shape[:2], x.shape[-1]
        keeps_size = self.padding == tuple(side // 2 for side in kernel) and all(side % 2 for side in kernel)
        if keeps_size and self.stride == (1, 1) and self.groups == channels == weight.shape[3]:
            return saveable(depthwise_conv2d(x, weight, bias))
        y = self._convolve(x, weight, keeps_size)
        return saveable(y if bias is None else y + per_channel(bias, y))

    def _convolve(self, x, weight, keeps_size):
        """Compute the convolution with the fastest applicable op."""
        kernel = weight.shape[:2]
        if keeps_size and self.stride[0] == self.stride[1] > 1 and self.groups == 1:
            return strided_conv2d(x, weight, self.stride[0])
        if kernel == self.stride and self.padding == (0, 0) and self.groups == 1:
            return _multiply_patches(x, weight)
        return conv2d(x, weight, stride=self.stride, padding=self.padding, groups=self.groups)


def convolve_and_normalize(conv: Conv2d, norm: LayerNorm, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo o"]:
    """Compute norm(conv(x)) of a convolution with groups=1, with fewer passes over its result.

    The mean that the norm removes is removed from the kernel and bias of the convolution, so that the norm computes a
    mean square alone. Reference: Jiang et al., Pre-RMSNorm and Pre-CRMSNorm Transformers, 2023.
    """
    return norm(conv(x, centered=True), centered=True)


def default_conv2d(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    bias: bool = True,
    dtype: jnp.dtype,
) -> Conv2d:
    """Build a convolution with the initial values of PyTorch's `nn.Conv2d`, which most families keep."""
    initializer = uniform_within(1 / math.sqrt(kernel_size**2 * in_chans // groups))
    return Conv2d(
        in_chans,
        out_chans,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        bias=bias,
        initializer=initializer,
        bias_initializer=initializer,
        dtype=dtype,
    )


class ConvTranspose2d(nnx.Module):
    """A transposed convolution whose stride is its kernel size, plus a bias; `weight` is (k, k, in, out).

    Every pixel becomes k x k pixels.

    Args:
        initializer: of the weight, with a bias of zeros; None for the initial values of PyTorch's `nn.ConvTranspose2d`.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        *,
        initializer: Initializer | None = None,
        dtype: jnp.dtype,
    ):
        default = uniform_within(1 / math.sqrt(kernel_size**2 * out_chans))
        self.weight = parameter((kernel_size, kernel_size, in_chans, out_chans), initializer or default)
        self.bias = parameter((out_chans,), default if initializer is None else zeros)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo o"]:
        (b, h, w, i), (kh, kw, _, o) = x.shape, self.weight.shape
        weight = self.weight.astype(self.dtype).transpose(2, 0, 1, 3).reshape(i, -1)
        patches = matmul(x.astype(self.dtype), weight).reshape(b, h, w, kh, kw, o)
        y = patches.swapaxes(2, 3).reshape(b, kh * h, kw * w, o)
        return saveable(y + per_channel(self.bias[...], y))


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _multiply_patches(x, weight):
    """Compute a convolution of non-overlapping patches as one matrix product; incomplete patches are dropped."""
    (b, h, w, i), (ph, pw, _, o) = x.shape, weight.shape
    rows, columns = h // ph, w // pw
    x = x[:, : rows * ph, : columns * pw]
    patches = x.reshape(b, rows, ph, columns, pw, i).swapaxes(2, 3).reshape(b, rows, columns, ph * pw * i)
    return matmul(patches, weight.reshape(-1, o))


class DepthwiseConv1d(nnx.Module):
    """The base of depthwise convolutions of a sequence plus a bias; `weight` is (k, 1, d)."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool, dtype: jnp.dtype):
        initializer = uniform_within(kernel_size**-0.5)
        self.weight = parameter((kernel_size, 1, channels), initializer)
        self.bias = parameter((channels,), initializer) if bias else None
        self.dtype = dtype

    def _convolve(self, x, before, after):
        """Compute the convolution with zeros before and after the sequence."""
        x = jnp.pad(x, ((0, 0), (before, after), (0, 0))).astype(self.dtype).astype(jnp.float32)
        taps = self.weight.shape[0]
        length = x.shape[1] - taps + 1
        y = sum(x[:, tap : tap + length] * self.weight[tap : tap + 1] for tap in range(taps))
        y = y if self.bias is None else y + self.bias[None, None, :]
        return y.astype(self.dtype)


class CausalConv1d(DepthwiseConv1d):
    """A causal depthwise convolution of a sequence; the current step is the last tap of `weight` (k, 1, d)."""

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self._convolve(x, self.weight.shape[0] - 1, 0)

    def step(
        self, window: Float[Array, "b k d"], x: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k d"]]:
        """Compute the output at the next position and the updated window of inputs."""
        window = jnp.concatenate([window, x[:, None].astype(window.dtype)], axis=1)
        return self._convolve(window, 0, 0)[:, 0], window[:, 1:]
