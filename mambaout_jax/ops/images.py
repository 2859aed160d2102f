"""Normalization of pixels, and of what is around images in a canvas."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def normalize_images(
    images: Float[Array, "b h w c"] | UInt8[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """Compute (x / 255 - mean) / std of pixels in 0..255.

    Args:
        mean, std: statistics of each channel, for images in 0..1.
    """
    mean, std = _of_pixels(mean, std)
    return (images.astype(jnp.float32) - mean) / std


def denormalize_images(
    images: Float[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """Compute the pixels in 0..255 of normalized images, the inverse of `normalize_images`."""
    mean, std = _of_pixels(mean, std)
    return images * std + mean


def blank_outside(images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"]) -> Float[Array, "b h w c"]:
    """Return normalized images with 0, the mean color, outside of (height, width)."""
    rows, columns = (jnp.arange(side)[None, :] < sizes[:, i : i + 1] for i, side in enumerate(images.shape[1:3]))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0)


def _of_pixels(*statistics: Sequence[float]) -> Iterator[Float[Array, "1 1 1 c"]]:
    """Yield statistics of images in 0..1 for pixels in 0..255."""
    return (255.0 * jnp.asarray(value).reshape(1, 1, 1, -1) for value in statistics)
