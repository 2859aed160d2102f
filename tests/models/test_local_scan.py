"""Windowed scan orders visit the pixels that LocalMamba's visit, and the gate weights channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.models import Functional, ModelError
from mambaout_jax.models.layers.local_scan import ChannelGate, parse_directions

NAMES = ("h", "v", "w2", "w3", "w7", "h_flip", "v_flip", "w2_flip", "w3_flip", "w7_flip")
every_direction = pytest.mark.parametrize("name", NAMES)


def direction(name):
    ((found,),) = parse_directions([name])
    return found


def numbered(height, width):
    """Return a map whose pixels are numbered from 1 row by row, so that padding is 0."""
    return jnp.arange(1.0, height * width + 1).reshape(1, height, width, 1)


def visited(name, height, width):
    return np.asarray(direction(name).sequence(numbered(height, width))).reshape(-1).astype(int).tolist()


def test_windows_and_their_pixels_are_visited_row_by_row():
    assert visited("w2", 4, 4) == [1, 2, 5, 6, 3, 4, 7, 8, 9, 10, 13, 14, 11, 12, 15, 16]
    assert visited("h", 2, 3) == [1, 2, 3, 4, 5, 6]
    assert visited("v", 2, 3) == [1, 4, 2, 5, 3, 6]


def test_incomplete_windows_are_padded_at_the_bottom_and_right_and_come_first_in_a_flipped_scan():
    assert visited("w2", 3, 3) == [1, 2, 4, 5, 3, 0, 6, 0, 7, 8, 0, 0, 9, 0, 0, 0]
    assert visited("w2_flip", 3, 3) == visited("w2", 3, 3)[::-1]


@every_direction
@pytest.mark.parametrize("size", [(6, 6), (7, 7), (5, 5), (1, 1)])
def test_a_map_comes_back_from_its_sequence(name, size):
    x = numbered(*size)
    y = direction(name).sequence(x)
    assert y.shape[1] == direction(name).length(*size)
    np.testing.assert_array_equal(direction(name).feature_map(y, *size), x)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("v")])
def test_a_map_that_is_not_square_comes_back_from_rows_and_windows(name):
    x = numbered(5, 8)
    np.testing.assert_array_equal(direction(name).feature_map(direction(name).sequence(x), 5, 8), x)


@pytest.mark.parametrize("name", ["v", "v_flip"])
def test_columns_of_a_map_that_is_not_square_come_back_as_the_reference_leaves_them(name):
    back = direction(name).feature_map(direction(name).sequence(numbered(2, 3)), 2, 3)
    # The sequence 1 4 2 5 3 6 as two rows, read column by column.
    np.testing.assert_array_equal(back.reshape(-1), [1, 5, 4, 3, 2, 6])


@pytest.mark.parametrize("names", ["", " ", "w0", "w", "x", "h v_flop", "hflip", "w2 flip", "w-1", "w1.5"])
def test_unknown_directions_are_refused(names):
    with pytest.raises(ModelError, match="direction"):
        parse_directions(["h", names])


def test_the_gate_is_one_factor_per_channel_from_the_mean_of_the_norm():
    gate = Functional(ChannelGate(16, dtype=jnp.dtype("float32")))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), gate.shapes["params"])
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    normed = (x - mean) / np.sqrt(variance + 1e-5) * params["norm"]["weight"] + params["norm"]["bias"]
    hidden = normed.mean(1) @ params["global_reduce"]["weight"] + params["global_reduce"]["bias"]
    assert hidden.shape == (2, 2)
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    scale = 1 / (1 + np.exp(-(hidden @ params["channel_select"]["weight"] + params["channel_select"]["bias"])))
    y = gate.apply({"params": params, "batch_stats": {}}, x)
    np.testing.assert_allclose(y, x * scale[:, None], rtol=0, atol=1e-5)
