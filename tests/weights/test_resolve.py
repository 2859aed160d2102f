"""The shapes of a file identify its variant, or one sentence names the closest one."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import mambaout_jax as mo
from mambaout_jax.export.torch import import_weights
from mambaout_jax.weights import UnknownVariantError, WeightsError, check_unambiguous, resolve_model
from tests.marks import slow_but
from tests.weights import configurations, pytorch

TASK = {"num_classes": 12, "in_chans": 1}


def resolved(shapes, name=None):
    return resolve_model(pytorch.checkpoint_of(shapes), name)


def refusal(shapes, name=None):
    with pytest.raises(WeightsError) as caught:
        resolved(shapes, name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("weights.safetensors: ")
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, TASK], ids=["own", "other"])
@pytest.mark.parametrize(
    "name", slow_but(["mambaout_femto", "mamba_femto", "test_mambaout"], mo.list_models(), "nightly")
)
def test_the_shapes_of_a_variant_name_it_in_every_key_format(name, options):
    model = mo.create_model(name, **options)
    for key_format in model.family.key_formats:
        if any(model.options[key] != value for key, value in key_format.fixed.items()):
            continue
        found = resolved(configurations.shapes(model, key_format.name))
        same = mo.create_model(found.name, **found.options)
        assert found.key_format is key_format
        assert found.options == options
        assert configurations.shapes(same, key_format.name) == configurations.shapes(model, key_format.name)
        assert found.name == name or name in found.others


@pytest.mark.slow
@pytest.mark.parametrize("size", slow_but(["tiny"], ["tiny", "small", "base"]))
@pytest.mark.parametrize("options", [{}, {"img_size": (384, 384)}, {"img_size": (96, 96), **TASK}], ids=str)
def test_the_first_of_several_variants_with_these_shapes_is_taken_and_the_others_are_named(size, options):
    model = mo.create_model(f"vit_{size}_patch16_224", **options)
    found = resolved(configurations.shapes(model))
    assert found[1:] == (f"deit_{size}_patch16_224", options, (f"vit_{size}_patch16_224",))


@pytest.mark.slow
def test_load_pretrained_requires_the_name_where_variants_differ_in_preprocessing(tmp_path):
    model = mo.create_model("vit_tiny_patch16_224", img_size=32)
    tensors = mo.to_torch(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.shapes))
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UnknownVariantError, match=r"deit_tiny_patch16_224 and vit_tiny_patch16_224 have these tensors"):
        mo.load_pretrained(tmp_path / "w.safetensors")
    for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224"):
        found, _ = mo.load_pretrained(tmp_path / "w.safetensors", name=name)
        assert found.name == name
        assert found.input_spec.mean == mo.create_model(name).input_spec.mean


@pytest.mark.slow
def test_variants_with_the_same_tensors_are_ambiguous_if_they_compute_something_else():
    same, different = (
        resolved(configurations.shapes(mo.create_model(name))) for name in ("mambavision_b", "mambavision_l2")
    )
    assert (same.name, same.others) == ("mambavision_b", ("mambavision_b_21k",))
    check_unambiguous("w.pth", same)
    message = (
        "^w.pth: mambavision_l2 and mambavision_l2_512_21k have these tensors but differ in crop_mode, crop_pct, size "
        "and window_size; name the variant"
    )
    with pytest.raises(UnknownVariantError, match=message):
        check_unambiguous("w.pth", different)


def test_a_size_that_is_not_square_is_not_guessed():
    shapes = configurations.shapes(mo.create_model("vit_tiny_patch16_224", img_size=(32, 64)))
    assert "the closest, deit_tiny_patch16_224, differs in 1 tensor:" in refusal(shapes)
    assert "img_size" not in resolved(shapes, "vit_tiny_patch16_224").options


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"head_fn": "norm_mlp"}, 2),
        ({"depths": (3, 3, 10, 3)}, 8),
        ({"kernel_size": 5, "num_classes": 7}, 18),
        ({"dims": (8, 16), "depths": (1, 1)}, None),
    ],
    ids=str,
)
def test_sizes_that_no_variant_has_name_the_nearest_variant_and_ask_for_the_model(options, count):
    words = refusal(configurations.shapes(mo.create_model("mambaout_femto", **options)))
    assert "no variant has exactly these tensors; the closest, " in words
    assert "name the variant, or use a folder with a config.json" in words
    if count is not None:
        assert f"the closest, mambaout_femto, differs in {count} tensor" in words


def test_a_name_leaves_the_classes_and_channels_to_the_shapes():
    shapes = configurations.shapes(mo.create_model("mambaout_kobe", num_classes=7, in_chans=1))
    assert resolved(shapes, "mambaout_femto")[1:] == ("mambaout_femto", {"num_classes": 7, "in_chans": 1}, ())
    del shapes["stages.0.blocks.0.norm.weight"], shapes["head.fc.weight"]
    assert resolved(shapes, "mambaout_kobe").options == {"in_chans": 1}


def test_a_name_leaves_the_size_of_the_images_to_the_shapes():
    shapes = configurations.shapes(mo.create_model("deit_tiny_patch16_224", img_size=384))
    options = {"num_classes": 1000, "in_chans": 3, "img_size": (384, 384)}
    assert resolved(shapes, "vit_tiny_patch16_224")[1:] == ("vit_tiny_patch16_224", options, ())


def test_weights_of_another_family_than_the_named_one_are_refused_by_the_conversion():
    model = pytorch.small_model()
    checkpoint = pytorch.checkpoint_of(configurations.shapes(model))
    assert resolve_model(checkpoint, "vit_tiny_patch16_224").options == {}
    with pytest.raises(WeightsError, match="belong to a MambaOut; expected a VisionTransformer"):
        mo.from_torch(mo.create_model("vit_tiny_patch16_224"), mo.to_torch(model, pytorch.draw(model)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_224", "the weights belong to a MambaOut; expected a VisionTransformer"),
        ("test_mambaout", "key format 'mambaout' cannot express test_mambaout"),
    ],
)
def test_load_pretrained_names_the_family_or_format_of_the_weights_before_their_tensors(tmp_path, name, words):
    model = pytorch.small_model()
    save_file(mo.to_torch(model, pytorch.draw(model), "mambaout"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=rf"w\.safetensors: {words}"):
        mo.load_pretrained(tmp_path / "w.safetensors", name=name)


@pytest.mark.slow
@pytest.mark.parametrize("as_file", [False, True])
def test_weights_of_another_family_whose_keys_match_are_refused_with_the_names_of_both(tmp_path, as_file):
    model = mo.create_model("vmamba_tiny_v0", num_classes=5)
    source = mo.to_torch(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.shapes))
    if as_file:
        save_file(source, source := tmp_path / "w.safetensors")
    words = "the weights are those of vmamba_tiny_v0; expected localvmamba_tiny$"
    with pytest.raises(WeightsError, match=words) as caught:
        mo.from_torch(mo.create_model("localvmamba_tiny", num_classes=5), source)
    assert str(caught.value).startswith(f"{source}: " if as_file else "the weights")


def write_zeros(file, shapes):
    """Write a safetensors file of zeros, which takes no space on the disk."""
    ends = [0, *itertools.accumulate(4 * math.prod(shape) for shape in shapes.values())]
    header = {
        key: {"dtype": "F32", "shape": shape, "data_offsets": bounds}
        for (key, shape), bounds in zip(shapes.items(), itertools.pairwise(ends), strict=True)
    }
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + ends[-1])


LINES = (
    ("vmamba_tiny_s1l8", "vmamba"),
    ("vmamba_tiny_s2l5", "vmamba"),
    ("vmamba_tiny_v0", "vmamba"),
    ("vmamba_tiny_v0", "vmamba_archive"),
)


@pytest.mark.parametrize(
    ("name", "key_format", "other"),
    slow_but(
        [("vmamba_tiny_v0", "vmamba_archive", "vmamba_tiny_s1l8"), ("vmamba_tiny_s1l8", "vmamba", "vmamba_tiny_s2l5")],
        [(name, names, other) for name, names in LINES for other, _ in LINES[:3] if other != name],
        "nightly",
    ),
)
def test_weights_of_another_line_of_vmamba_are_refused_with_the_names_of_both(tmp_path, name, key_format, other):
    shapes = configurations.shapes(mo.create_model(name, num_classes=5), key_format)
    write_zeros(file := tmp_path / "w.safetensors", shapes)
    model = mo.create_model(other, num_classes=5)
    words = f"the weights are those of {name}; expected {other}$"
    with pytest.raises(WeightsError, match=f"^{words}"):
        mo.from_torch(model, {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    for read in (
        lambda: mo.from_torch(model, file),
        lambda: mo.load_pretrained(file, name=other),
        lambda: import_weights(str(file), tmp_path / "imported", name=other),
    ):
        with pytest.raises(WeightsError, match=f"^{file}: {words}"):
            read()
    assert not (tmp_path / "imported").exists()


FEMTO = configurations.shapes(mo.create_model("mambaout_femto"))
LAST_LAYER = {"head.fc.weight", "head.fc.bias"}


@pytest.mark.nightly
@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from([*FEMTO, "stages.99999999999.blocks.0.norm.bias", f"stages.{'9' * 5000}.blocks.0.norm.bias"]),
        st.none() | st.lists(st.integers(0, 10**40), max_size=5).map(tuple),
        min_size=1,
        max_size=5,
    )
)
@example(dict.fromkeys(LAST_LAYER))
def test_any_shapes_are_the_variant_or_one_sentence(changes):
    shapes = {key: shape for key, shape in {**FEMTO, **changes}.items() if shape is not None}
    try:
        found = resolved(shapes)
    except WeightsError as error:
        words = str(error)
    else:
        expected = configurations.shapes(mo.create_model(found.name, **found.options))
        if LAST_LAYER.isdisjoint(shapes):  # weights without a last layer are those of the variant, too
            expected = {key: shape for key, shape in expected.items() if key not in LAST_LAYER}
        assert expected == shapes
        return
    assert "\n" not in words
