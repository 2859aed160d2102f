"""Read the reference data of tests/golden."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent.parent / "golden"


class Case(NamedTuple):
    """One reference run: what was built, its weights, what went in, what came out."""

    options: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    input: np.ndarray
    output: np.ndarray
    features: dict[str, np.ndarray]
    atol: float


def names(pattern: str) -> list[str]:
    """List the cases whose name matches a glob."""
    return sorted(path.stem for path in GOLDEN.glob(f"{pattern}.json"))


def load(name: str) -> Case:
    """Load a case, images channels last, weights under the names and in the axes that the reference gives them."""
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    images = tensors["input"]
    return Case(
        options={key: tuple(v) if isinstance(v, list) else v for key, v in about["kwargs"].items()},
        state_dict={key.removeprefix("params/"): v for key, v in tensors.items() if key.startswith("params/")},
        input=images.transpose(0, 2, 3, 1) if about["input_layout"] == "NCHW" else images,
        output=tensors["output"],
        features={key.removeprefix("features/"): v for key, v in tensors.items() if key.startswith("features/")},
        atol=about["suggested_atol"],
    )
