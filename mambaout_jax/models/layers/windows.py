"""Square windows of feature maps."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def split_windows(x: Float[Array, "b h w d"], side: int) -> Float[Array, "n l d"]:
    """Return the tokens of square windows of maps; windows are in row-major order, as are the tokens of each.

    Maps are padded with zeros at the bottom and right to a multiple of the side. The zeros are tokens like others.
    """
    b, h, w, d = x.shape
    rows, columns = -(-h // side), -(-w // side)
    x = jnp.pad(x, ((0, 0), (0, rows * side - h), (0, columns * side - w), (0, 0)))
    x = x.reshape(b, rows, side, columns, side, d).swapaxes(2, 3)
    return x.reshape(b * rows * columns, side * side, d)


def merge_windows(x: Float[Array, "n l d"], side: int, h: int, w: int) -> Float[Array, "b h w d"]:
    """Merge the windows of `split_windows` into maps (b, h, w, d).

    x may also have all windows of a map in one sequence: (b, rows * columns * side**2, d).
    """
    rows, columns = -(-h // side), -(-w // side)
    x = x.reshape(-1, rows, columns, side, side, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(-1, rows * side, columns * side, x.shape[-1])[:, :h, :w]
