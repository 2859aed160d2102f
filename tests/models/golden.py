"""Reference data: numbers of the reference implementations, and what the tests have to know of each family.

Cases are in tests/golden and, if $MAMBAOUT_GOLDEN is set, in the folders `golden*` in it. `families/NAME.json` in
tests/golden pairs the cases with models of ours; a new family adds such a file and its cases, and no code. Numbers that
code under a restrictive license computed are not in the repository ("restricted" in the file of the family).
"""

import fnmatch
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

import mambaout_jax as mo

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = {path.stem: json.loads(path.read_text()) for path in sorted((GOLDEN / "families").glob("*.json"))}


class Case(NamedTuple):
    """One reference run: what was built, its weights, what went in, what came out."""

    options: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    input: np.ndarray
    output: np.ndarray
    features: dict[str, np.ndarray]
    layouts: dict[str, str]
    atol: float


@functools.cache
def _files() -> dict[str, Path]:
    """Return the JSON files of all cases that are here by name; those of the repository come first."""
    folders = [GOLDEN]
    if elsewhere := os.environ.get("MAMBAOUT_GOLDEN"):
        folders += sorted(Path(elsewhere).glob("golden*"))
    found = [path for folder in folders for path in folder.glob("*__*.json")]
    return {path.stem: path for path in reversed(found)}


def path(name: str) -> Path:
    """Return the JSON file of a case."""
    return _files()[name]


def known() -> set[str]:
    """Return all cases that there are, here or elsewhere."""
    return set(json.loads((GOLDEN / "cases.json").read_text())) | _files().keys()


def names(pattern: str) -> list[str]:
    """List the cases whose name matches a glob."""
    return sorted(fnmatch.filter(_files(), pattern))


def model_names() -> list[str]:
    """List the cases of whole models of the families that are here."""
    return [name for name in sorted(_files()) if _family(name)]


def own_model_names() -> list[str]:
    """List those of them that the repository has."""
    return [name for name in model_names() if _files()[name].parent == GOLDEN]


def about(name: str) -> dict[str, Any]:
    """Return what is recorded of a case."""
    return json.loads(_files()[name].read_text())


def load(name: str) -> Case:
    """Load a case, images channels last, weights under the names and in the axes that the reference gives them."""
    record, tensors = about(name), load_file(_files()[name].with_suffix(".safetensors"))
    images = tensors["input"]

    def part(prefix):
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return Case(
        options=_tuples(record["kwargs"]),
        state_dict=part("params/"),
        input=images.transpose(0, 2, 3, 1) if record["input_layout"] == "NCHW" else images,
        output=tensors["output"],
        features=part("features/"),
        layouts={key.removeprefix("features/"): value for key, value in record["feature_layouts"].items()},
        atol=record["suggested_atol"],
    )


def build(name: str, case: Case) -> mo.Model:
    """Build the model of a case."""
    matching: dict[str, Any] = {}
    for pattern, entry in FAMILIES[_family(name)]["cases"].items():
        if fnmatch.fnmatchcase(name, pattern):
            matching |= entry
    names = matching.get("rename", {})
    options = {names.get(key, key): value for key, value in case.options.items() if names.get(key, key) is not None}
    options = {"img_size": case.input.shape[1:3], **options, **_tuples(matching.get("options", {}))}
    return mo.create_model(matching["model"], **options)


def stage_maps(name: str, case: Case, count: int) -> list[tuple[np.ndarray, str]]:
    """Return the last reference activations that are maps of stages, each with its layout."""
    keys = fnmatch.filter(case.features, FAMILIES[_family(name)]["features"])
    keys.sort(key=lambda key: (len(key), key))
    return [(case.features[key], case.layouts[key]) for key in keys[-count:]]


def patches(name: str, tokens: np.ndarray, count: int) -> np.ndarray:
    """Return the tokens of a case without its class token, which comes first or in the middle."""
    in_middle = FAMILIES[_family(name)].get("class_token") == "middle"
    first = count // 2 if in_middle else 0
    return np.delete(tokens, slice(first, first + tokens.shape[1] - count), axis=1)


def small_models() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return small models of all families, as arguments of `create_model`."""
    return {
        f"{family}-{kind}": (options["model"], _tuples({k: v for k, v in options.items() if k != "model"}))
        for family, data in FAMILIES.items()
        for kind, options in data["small"].items()
    }


def scans_of(name: str) -> list[list[int]]:
    """Return the directions, channels and states of the scans of a small model, for each of its maps."""
    family, _, kind = name.partition("-")
    return FAMILIES[family]["scans"][kind]


def first_small_models() -> list[str]:
    """Return the first small model of each family."""
    return [f"{family}-{next(iter(data['small']))}" for family, data in FAMILIES.items()]


def shallow_options(family: str) -> dict[str, Any]:
    """Return options at which every kind of name of a variant occurs and nothing takes long."""
    return _tuples(FAMILIES[family]["shallow"])


def skipped() -> dict[str, int]:
    """Count the known cases that no test compares, by the reason."""
    absent = known() - _files().keys()
    others = [name for name in _files() if about(name)["kind"] == "model" and not _family(name)]
    # Tests of their layers compare them.
    layers = ("gated_cnn_block__*", "mamba_block__*", "vss_block__*", "mambavision_mixer__*", "plainmamba_mixer__*")
    heads = ("uper_head__*", "fcn_head__*", "segmentor__*", "fpn__*", "rpn_*", "bbox_head__*", "mask_*")
    blocks = {name for pattern in (*layers, *heads) for name in names(pattern)}
    elsewhere = "lacks them" if "MAMBAOUT_GOLDEN" in os.environ else "is not set"
    return {
        f"not in tests/golden, and MAMBAOUT_GOLDEN {elsewhere}": len(absent),
        "of no family that is here": len(set(others) - blocks),
    }


def _family(name: str) -> str | None:
    for family, data in FAMILIES.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in data["cases"]):
            return family
    return None


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
