"""The feature pyramid network of two-stage detectors.

Reference: Lin et al., Feature Pyramid Networks for Object Detection, 2017; layers and parameter names of mmdetection
3.3.0 (`FPN`).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.parameters import xavier_uniform


class FPN(nnx.Module):
    """Maps of one width from those of a backbone: each level adds the next coarser one, enlarged by repetition.

    A last level has every second row and column of the coarsest one.
    """

    def __init__(self, in_chans: Sequence[int], channels: int, *, dtype: jnp.dtype):
        self.lateral_convs = nnx.List(
            Conv2d(width, channels, 1, initializer=xavier_uniform(width, channels), dtype=dtype) for width in in_chans
        )
        init = xavier_uniform(9 * channels, 9 * channels)
        self.fpn_convs = nnx.List(
            Conv2d(channels, channels, 3, padding=1, initializer=init, dtype=dtype) for _ in in_chans
        )

    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ c"]]:
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for lower in range(len(levels) - 2, -1, -1):
            levels[lower] += _enlarge(levels[lower + 1], levels[lower].shape[1:3])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        return [*levels, lax.slice(levels[-1], (0, 0, 0, 0), levels[-1].shape, (1, 2, 2, 1))]


def _enlarge(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b ho wo c"]:
    """Resize maps to the nearest cells: row i is row floor(i * h / ho)."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), 1):
        if new == 2 * old:
            x = jnp.repeat(x, 2, axis=axis)
        elif new != old:
            x = jnp.take(x, np.arange(new) * old // new, axis=axis)
    return x
