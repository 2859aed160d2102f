"""Resizing and pooling of maps are those of PyTorch, by their definitions and, where it is installed, live."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import adaptive_avg_pool, resize_bilinear

SIZES = [((4, 6), (8, 12)), ((5, 3), (20, 12)), ((7, 11), (6, 6)), ((4, 4), (7, 5)), ((1, 1), (9, 4)), ((9, 8), (3, 8))]


def draw(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def bilinear(x, size):
    """Interpolate each pixel between its four neighbors."""
    (height, width), y = x.shape[1:3], np.zeros((len(x), *size, x.shape[3]))
    for row, column in np.ndindex(size):
        source = [
            min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
            for index, old, new in ((row, height, size[0]), (column, width, size[1]))
        ]
        (top, left), (down, right) = map(math.floor, source), (value % 1 for value in source)
        bottom, far = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = x[:, top, left] * (1 - right) + x[:, top, far] * right
        lower = x[:, bottom, left] * (1 - right) + x[:, bottom, far] * right
        y[:, row, column] = upper * (1 - down) + lower * down
    return y


def average(x, size):
    y = np.zeros((len(x), *size, x.shape[3]))
    for row, column in np.ndindex(size):
        rows, columns = (
            slice(index * old // new, -(-(index + 1) * old // new))
            for index, old, new in ((row, x.shape[1], size[0]), (column, x.shape[2], size[1]))
        )
        y[:, row, column] = x[:, rows, columns].mean((1, 2))
    return y


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize(("op", "definition"), [(resize_bilinear, bilinear), (adaptive_avg_pool, average)])
def test_values_are_those_of_the_definition(op, definition, old, new):
    np.testing.assert_allclose(op(jnp.asarray(draw(old)), new), definition(draw(old), new), rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", [resize_bilinear, adaptive_avg_pool])
def test_maps_of_the_same_size_are_unchanged(op):
    x = jnp.asarray(draw((5, 7)))
    np.testing.assert_array_equal(op(x, (5, 7)), x)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("op", [resize_bilinear, adaptive_avg_pool])
def test_the_gradient_is_the_transposed_map(op, old, new):
    x, y = jnp.asarray(draw(old)), jnp.asarray(np.random.default_rng(1).normal(size=(2, *new, 3)), jnp.float32)
    out, transposed = jax.vjp(functools.partial(op, size=new), x)
    np.testing.assert_allclose(jnp.vdot(out, y), jnp.vdot(x, transposed(y)[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", [resize_bilinear, adaptive_avg_pool])
def test_bfloat16_is_kept(op):
    x = jnp.asarray(draw((4, 6)), jnp.bfloat16)
    found = op(x, (8, 9))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), op(x.astype(jnp.float32), (8, 9)), rtol=0, atol=0.05)


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_pytorch_computes_the_same(old, new):
    import torch

    x = torch.from_numpy(draw(old)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(x, size=new, mode="bilinear", align_corners=False)
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, new)
    for op, theirs in ((resize_bilinear, resized), (adaptive_avg_pool, pooled)):
        np.testing.assert_allclose(op(jnp.asarray(draw(old)), new), theirs.permute(0, 2, 3, 1), rtol=0, atol=1e-5)
