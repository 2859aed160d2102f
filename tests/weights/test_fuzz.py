"""Any bytes in a file give weights or an error in one sentence."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambaout_jax.weights.checkpoint import read_checkpoint
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.files import write_file
from tests.weights.test_folder import CONFIG, FLAT, TENSORS

quickly = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = {**TENSORS, "head.bias": np.arange(5, dtype=np.float16), "count": np.array(3, np.int64)}
ODD_LENGTHS = (0, 1, 7, 8, 2**31, 2**32, 2**53, 2**60, 2**63, 2**64 - 1)


@st.composite
def mutations(draw):
    """Return a function that changes bytes in some places."""
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "swap", "length", "number", "repeat"]))
        steps.append((kind, draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16)), draw(st.binary(max_size=9))))
    return lambda content: mutated(content, steps)


def mutated(content, steps):
    content = bytearray(content)
    for kind, first, second, new in steps:
        size = len(content)
        if not size:
            break
        a, b = sorted((first % size, second % size))
        if kind == "flip":
            content[a] ^= 1 << second % 8
        elif kind == "cut":
            del content[a : b if second % 2 else size]
        elif kind == "insert":
            content[a:a] = new
        elif kind == "swap":
            content[a], content[b] = content[b], content[a]
        elif kind == "length":
            content[:8] = ODD_LENGTHS[first % len(ODD_LENGTHS)].to_bytes(8, "little")
        elif kind == "number":  # one digit of a header or a config becomes many
            digits = [place for place, byte in enumerate(content) if byte in b"0123456789"]
            if digits:
                place = digits[first % len(digits)]
                content[place : place + 1] = b"9" * (second % 25)
        else:
            content[b:b] = content[a:b]
    return bytes(content)


def assert_weights_or_one_sentence(place):
    said = None
    try:
        found = read_checkpoint(place)
        shapes = {name: found.tensors[name].shape for name in found.tensors}
    except WeightsError as error:
        said = str(error)
    if said is None:
        assert shapes == found.shapes
    else:
        assert said.startswith(str(place))
        assert len(said.splitlines()) == 1
        assert len(said) < 1000


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("valid") / "model.safetensors"
    write_file(path, SMALL)
    return path.read_bytes()


@quickly
@given(mutate=mutations(), name=st.sampled_from(["a.safetensors", "a.bin"]))
def test_a_safetensors_file_of_any_bytes(tmp_path, safetensors, mutate, name):
    (tmp_path / name).write_bytes(mutate(safetensors))
    assert_weights_or_one_sentence(tmp_path / name)


@quickly
@given(mutate=mutations(), config=st.sampled_from([CONFIG, FLAT]))
def test_a_config_of_any_bytes(tmp_path, safetensors, mutate, config):
    (tmp_path / "model.safetensors").write_bytes(safetensors)
    (tmp_path / "config.json").write_bytes(mutate(json.dumps(config).encode()))
    assert_weights_or_one_sentence(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@quickly
@given(data=st.data())
def test_a_config_with_any_value_anywhere(tmp_path, safetensors, data):
    config = json.loads(json.dumps(data.draw(st.sampled_from([CONFIG, FLAT]))))
    for _ in range(data.draw(st.integers(1, 2))):
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
        part = data.draw(st.sampled_from(parts))
        part[data.draw(st.sampled_from([*part, "label_names"]))] = data.draw(json_values)
    (tmp_path / "model.safetensors").write_bytes(safetensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_weights_or_one_sentence(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
@quickly
@given(mutate=mutations())
def test_a_pickle_of_any_bytes(tmp_path, how, mutate):
    import torch

    valid = tmp_path / "valid"
    if not valid.exists():
        torch.save({"model": {"a": torch.arange(9.0), "b": torch.ones(2, 3).bfloat16()}, "epoch": 3}, valid, **how)
    (tmp_path / "a.pth").write_bytes(mutate(valid.read_bytes()))
    assert_weights_or_one_sentence(tmp_path / "a.pth")


@pytest.mark.torch
def test_a_pickle_with_a_damaged_size_is_no_fault_of_the_machine(tmp_path):
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    huge_bytes = b"\x8e" + (2**46).to_bytes(8, "little")  # BINBYTES8, with the number of bytes
    (tmp_path / "a.pth").write_bytes(content.replace(b"}q\x00", huge_bytes))
    assert_weights_or_one_sentence(tmp_path / "a.pth")
