"""Grouped convolution whose gradient is correct on meshes with several axes."""

from functools import partial

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mambaout_jax.ops.sharding import spec_of, split_over_all_axes, with_auto_axes

Pair = tuple[int, int]


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw j o"],
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
) -> Float[Array, "b ho wo o"]:
    """Convolve each group of channels with its own kernels, with zeros on each side of the map as in PyTorch.

    With several groups it has a custom VJP and no forward-mode derivative.

    Args:
        kernel: j is i / groups.
        stride, padding: (vertical, horizontal).
        groups: a divisor of i and of o.

    Raises:
        ValueError: the groups do not divide the channels, or the kernel has another number of input channels.
    """
    run = partial(convolve if groups == 1 else _grouped, stride, padding, groups)
    *rows, _ = spec_of(x)
    return with_auto_axes(run, x, kernel, out=PartitionSpec(*rows, spec_of(kernel)[-1]))


def convolve(
    stride: Pair, padding: Pair, groups: int, x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw j o"]
) -> Float[Array, "b ho wo o"]:
    """Compute `conv2d` by XLA's convolution, with XLA's gradient."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(side, side) for side in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def convolve_vjp(
    stride: Pair,
    padding: Pair,
    groups: int,
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw j o"],
    dy: Float[Array, "b ho wo o"],
) -> tuple[Float[Array, "b h w i"], Float[Array, "kh kw j o"]]:
    """Compute the gradients of x and of the kernel of several groups.

    Where the batch is split over some axes of a mesh only, XLA sums the gradient of the kernel over the other axes too,
    although it is replicated over them. (XLA of jaxlib 0.10 and 0.12; one group is not affected.)
    """
    forward = partial(convolve, stride, padding, groups)
    (dkernel,) = jax.vjp(partial(forward, split_over_all_axes(x)), kernel)[1](split_over_all_axes(dy))
    (dx,) = jax.vjp(lambda x: forward(x, kernel), x)[1](dy)
    return dx, dkernel


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _grouped(stride, padding, groups, x, kernel):
    return convolve(stride, padding, groups, x, kernel)


def _fwd(stride, padding, groups, x, kernel):
    return convolve(stride, padding, groups, x, kernel), (x, kernel)


def _bwd(stride, padding, groups, residuals, dy):
    return convolve_vjp(stride, padding, groups, *residuals, dy)


_grouped.defvjp(_fwd, _bwd)
