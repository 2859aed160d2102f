import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.ops import matmul


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5), (0, 5), (2, 3, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradient_equal_those_of_a_plain_product(shape, dtype):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=size), dtype) for size in (shape, (shape[-1], 7)))
    dy = jnp.asarray(rng.normal(size=(*shape[:-1], 7)), dtype)

    @jax.jit
    def run(x, weight, dy):
        results = []
        for function in (matmul, lambda x, w: x @ w):
            y, vjp = jax.vjp(function, x, weight)
            results.append((y, *vjp(dy)))
        return results

    for ours, plain in zip(*run(x, weight, dy), strict=True):
        assert ours.shape == plain.shape
        assert ours.dtype == plain.dtype
        ours, plain = (np.asarray(value, "float32") for value in (ours, plain))
        peak = np.abs(plain).max(initial=0.0)
        np.testing.assert_allclose(ours, plain, rtol=0, atol=peak * (1e-6 if dtype == "float32" else 2e-2))


def test_gradient_on_an_accelerator_contracts_without_reshaping():
    x, dy = jax.ShapeDtypeStruct((2, 3, 4, 5), "float32"), jax.ShapeDtypeStruct((2, 3, 4, 7), "float32")

    def gradient(x, dy):
        return jax.vjp(lambda w: matmul(x, w), jnp.zeros((5, 7)))[1](dy)

    lowered = {
        platform: jax.jit(gradient).trace(x, dy).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "contracting_dims = [0, 1, 2] x [0, 1, 2]" in lowered["tpu"]
    assert "contracting_dims = [0, 1, 2] x [0, 1, 2]" not in lowered["cpu"]
