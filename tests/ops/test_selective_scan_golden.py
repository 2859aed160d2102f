import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mambaout_jax.ops import selective_scan
from mambaout_jax.ops.selective_scan import IMPLS
from tests.models import golden

CASES = golden.names("selective_scan__*")
# Cases that compile quickly with every implementation.
SHORT = ("selective_scan__L1_var", "selective_scan__L7_plain_nosoftplus")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "impl"),
    [
        pytest.param(name, impl, marks=[pytest.mark.slow] if name not in SHORT and impl != "auto" else [])
        for name in CASES
        for impl in IMPLS
    ],
)
def test_implementation_equals_the_golden_outputs(name, impl):
    about = json.loads((golden.GOLDEN / f"{name}.json").read_text())
    tensors = load_file(golden.GOLDEN / f"{name}.safetensors")
    arguments = {
        key.removeprefix("inputs/"): jnp.asarray(channels_last(key, x))
        for key, x in tensors.items()
        if "inputs/" in key
    }
    softplus = about["kwargs"]["delta_softplus"]

    cotangent = channels_last("output", tensors.get("cotangent", np.zeros_like(tensors["output"])))

    def run(arguments):
        y, last = selective_scan(**arguments, delta_softplus=softplus, return_last_state=True, impl=impl)
        return (y * cotangent).sum(), (y, last)

    if "cotangent" in tensors:
        gradients, (y, last) = jax.jit(jax.grad(run, has_aux=True))(arguments)
    else:
        _, (y, last) = jax.jit(run)(arguments)
    atol = about["suggested_atol"]
    np.testing.assert_allclose(y, channels_last("output", tensors["output"]), rtol=0, atol=atol)
    np.testing.assert_allclose(last, tensors["last_state"], rtol=0, atol=atol)
    if "cotangent" in tensors:
        assert gradients.keys() == {key.removeprefix("grads/") for key in tensors if key.startswith("grads/")}
        for key, gradient in gradients.items():
            np.testing.assert_allclose(gradient, channels_last(key, tensors[f"grads/{key}"]), rtol=0, atol=atol)


def channels_last(key, x):
    """Convert (b, d, l) or (b, [g,] n, l) of the reference to channels last."""
    if x.ndim == 4:
        return x.transpose(0, 3, 1, 2)
    return x.transpose(0, 2, 1) if x.ndim == 3 and key != "last_state" else x


def test_golden_cases_exist():
    assert len(CASES) == 7
