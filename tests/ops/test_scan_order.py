"""Scan orders visit every pixel once, and unflattening inverts flattening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import SCAN_ORDERS, flatten_map, unflatten_map

SIZES = [(1, 1), (1, 6), (5, 1), (3, 4), (4, 3), (7, 7)]


def visited(direction, height, width):
    """Return the flat indices of the pixels in the order of a scan."""
    places = jnp.arange(height * width, dtype=jnp.float32).reshape(1, height, width, 1)
    line = np.asarray(flatten_map(places, columns=direction.columns)).reshape(-1).astype(int)
    return (line[::-1] if direction.reverse else line).tolist()


def test_scan_orders_match_their_names():
    expected = {
        "causal": [[0, 1, 2, 3, 4, 5]],
        "bidirectional": [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]],
        "cross": [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]],
    }
    assert {order: [visited(d, 2, 3) for d in directions] for order, directions in SCAN_ORDERS.items()} == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", SCAN_ORDERS)
def test_every_direction_is_a_permutation(order, size):
    for direction in SCAN_ORDERS[order]:
        assert sorted(visited(direction, *size)) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("columns", [False, True])
def test_unflatten_inverts_flatten(columns, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    line = flatten_map(x, columns=columns)
    assert line.shape == (2, size[0] * size[1], 3)
    np.testing.assert_array_equal(unflatten_map(line, *size, columns=columns), x)
    np.testing.assert_array_equal(flatten_map(unflatten_map(line, *size, columns=columns), columns=columns), line)


@pytest.mark.parametrize("order", ["bidirectional", "cross"])
def test_each_direction_has_its_reverse(order):
    for direction in SCAN_ORDERS[order]:
        mirror = direction._replace(reverse=not direction.reverse)
        assert mirror in SCAN_ORDERS[order]
        assert visited(mirror, 3, 5) == visited(direction, 3, 5)[::-1]


def test_no_gather_is_compiled():
    def there_and_back(x):
        return unflatten_map(flatten_map(x, columns=True), *x.shape[1:3], columns=True)

    primitives = {e.primitive.name for e in jax.make_jaxpr(there_and_back)(jnp.ones((1, 3, 5, 2))).eqns}
    assert primitives == {"transpose", "reshape"}
