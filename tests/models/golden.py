"""Read the reference data of tests/golden into variables of ours."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent.parent / "golden"

# From the original repository's names to timm's, in this order.
_ORIGINAL_TO_TIMM = (
    (r"^norm\.", "head.norm."),
    (r"^head\.fc1\.", "head.pre_logits.fc."),
    (r"^head\.fc2\.", "head.fc."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.(?!blocks)", r"stages.\1.blocks.\2."),
)


class Case(NamedTuple):
    """One reference run: what was built, what went in, what came out."""

    options: dict[str, Any]
    params: dict[str, Any]
    input: np.ndarray
    output: np.ndarray
    features: dict[str, np.ndarray]
    atol: float


def names(pattern: str) -> list[str]:
    """List the cases whose name matches a glob."""
    return sorted(path.stem for path in GOLDEN.glob(f"{pattern}.json"))


def load(name: str) -> Case:
    """Load a case with its parameters as a nested dict and images channels last."""
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    images = tensors["input"]
    return Case(
        options={key: tuple(v) if isinstance(v, list) else v for key, v in about["kwargs"].items()},
        params=nested({key.removeprefix("params/"): v for key, v in tensors.items() if key.startswith("params/")}),
        input=images.transpose(0, 2, 3, 1) if about["input_layout"] == "NCHW" else images,
        output=tensors["output"],
        features={key.removeprefix("features/"): v for key, v in tensors.items() if key.startswith("features/")},
        atol=about["suggested_atol"],
    )


def nested(state_dict: dict[str, np.ndarray]) -> dict[str, Any]:
    """Turn a state dict of either dialect into nested parameters."""
    original = any(key.startswith("downsample_layers.") for key in state_dict)
    params: dict[str, Any] = {}
    for key, value in state_dict.items():
        *path, leaf = (_to_timm(key) if original else key).split(".")
        node = params
        for part in path:
            node = node.setdefault(int(part) if part.isdigit() else part, {})
        node[leaf] = value.transpose({2: (1, 0), 4: (2, 3, 1, 0)}.get(value.ndim, range(value.ndim)))
    return params


def _to_timm(key: str) -> str:
    if key.startswith("head.norm."):
        return key.replace("head.norm.", "head.pre_logits.norm.")
    for pattern, replacement in _ORIGINAL_TO_TIMM:
        key, changed = re.subn(pattern, replacement, key)
        if changed:
            return key
    return key
