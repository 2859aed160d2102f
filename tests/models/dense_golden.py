"""Reference data of models for dense prediction: numbers of mmsegmentation's and mmdetection's modules.

Unlike the cases of `golden`, a case has any number of inputs and outputs, gradients, and a tolerance for each tensor.
"""

from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from tests.models import golden


class DenseCase(NamedTuple):
    """One reference run; images and maps of `inputs` and `outputs` keep the axes of the reference."""

    record: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]

    def assert_close(self, name: str, ours: Any, of_peak: float = 0) -> None:
        """Check an output or a gradient, by its full name; float tensors within their tolerance, others exactly.

        Args:
            of_peak: accept this fraction of the largest expected value, where that is more than the case's tolerance.
        """
        kind, _, rest = name.partition("/")
        expected = (self.outputs if kind == "outputs" else self.grads)[rest]
        atol = max(self.record["suggested_atols"].get(name, 0), of_peak * np.abs(expected).max(initial=0))
        assert np.shape(ours) == expected.shape, name
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol, err_msg=name)


def names(pattern: str) -> list[str]:
    """List the cases whose name matches a glob."""
    return golden.names(pattern)


def load(name: str) -> DenseCase:
    """Load a case."""
    path = golden.path(name)
    tensors = load_file(path.with_suffix(".safetensors"))

    def part(prefix):
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return DenseCase(golden.about(name), *map(part, ("params/", "inputs/", "outputs/", "grads/")))


def maps(tensors: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """Return the numbered maps of a case, channels last."""
    found = [tensors[f"{prefix}{index}"] for index in range(sum(key.startswith(prefix) for key in tensors))]
    return [x.transpose(0, 2, 3, 1) for x in found]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by path."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
