"""Shapes tell the model: what they give is built with exactly these shapes, and what they cannot tell is said."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mambaout_jax as mo
from mambaout_jax.models import VARIANTS, MambaOut, ModelError
from mambaout_jax.weights import ConvertError, identify, model_args
from mambaout_jax.weights.resolve import _ratio
from tests.weights import configurations, pytorch


def identified(shapes, name=None):
    return identify(pytorch.checkpoint_of(shapes), name)


@pytest.mark.parametrize("num_classes", [1000, 12])
@pytest.mark.parametrize("name", [name for name in mo.list_models() if VARIANTS[name].family is MambaOut])
def test_a_variant_is_told_by_its_shapes_in_either_dialect(name, num_classes):
    model = mo.create_model(name, num_classes=num_classes)
    task = {} if num_classes == 1000 else {"num_classes": num_classes}
    for dialect in ("timm", "mambaout") if name in pytorch.ORIGINAL else ("timm",):
        identity = identified(configurations.shapes(model, dialect))
        assert (identity.table.dialect, *identity[1:]) == (dialect, name, task, "")


@settings(max_examples=50, deadline=None)
@given(configurations.options())
@example({"depths": (1,), "dims": (49,), "conv_ratio": 1 / 49, "expansion_ratio": 1.0})
@example({"depths": (1, 1), "dims": (4, 16), "expansion_ratio": 8 / 3})
@example({"depths": (1, 1), "dims": (16, 16), "downsample": "conv_nf"})
def test_what_the_shapes_tell_has_these_shapes(options):
    try:
        model = mo.create_model("mambaout_femto", **options)
    except ModelError:  # int(1 / 49 * 49) is 0
        return
    shapes = configurations.shapes(model)
    identity = identified(shapes)
    again = mo.create_model(identity.name, **identity.options)
    assert configurations.shapes(again) == shapes
    assert configurations.own_shapes(again) == configurations.own_shapes(model)
    told = {key: value for key, value in options.items() if key in ("depths", "dims", "num_classes", "in_chans")}
    assert {key: again.options[key] for key in told} == told
    if any(a != b for a, b in zip(model.options["dims"], model.options["dims"][1:], strict=False)):
        assert again.options["downsample"] == model.options["downsample"]
    assert "act_layer" in identity.assumed


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_ratio_is_found_wherever_there_is_one(data):
    dims = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
    ratio = data.draw(configurations.ratios(dims, 0.01, 8.0))
    widths = [int(ratio * dim) for dim in dims]
    found = _ratio(widths, dims, usual=1.0)
    assert [int(found * dim) for dim in dims] == widths


@pytest.mark.parametrize(("written", "dims"), [(8 / 3, (4, 8)), (2.5, (16, 24)), (1.25, (16, 24)), (3.0, (7,))])
def test_a_ratio_is_read_as_people_write_it(written, dims):
    assert _ratio([int(written * dim) for dim in dims], dims, usual=8 / 3) == written


@pytest.mark.parametrize("dims", [(49,), (49, 98), (98, 103, 107), (161, 187)])
def test_rounding_of_a_product_is_met(dims):
    for width in range(1, dims[0] + 1):
        widths = [width, *(int(np.nextafter(width / dims[0], 2) * dim) for dim in dims[1:])]
        found = _ratio(widths, dims, usual=1.0)
        assert [int(found * dim) for dim in dims] == widths


def test_no_ratio_is_searched_for_ever():
    with pytest.raises(ValueError, match="no ratio"):
        _ratio([5, 1], [10**12, 10**12], usual=1.0)


def test_what_no_shape_tells_is_said():
    shapes = configurations.shapes(mo.create_model("mambaout_femto", depths=(1, 1), dims=(8, 16)))
    assert identified(shapes).assumed == (
        "no variant has these sizes; act_layer 'gelu' of mambaout_femto, the nearest, is assumed"
    )


def test_stages_of_one_width_hide_where_the_norm_stands():
    shapes = configurations.shapes(mo.create_model("mambaout_femto", depths=(1, 1), dims=(8, 8)))
    assert (
        "act_layer 'gelu' and downsample 'conv' of mambaout_femto, the nearest, are assumed"
        in identified(shapes).assumed
    )
    later = mo.create_model("mambaout_femto", depths=(1,) * 3, dims=(8, 8, 16), downsample="conv_nf")
    assert identified(configurations.shapes(later)).options["downsample"] == "conv_nf"


def test_the_original_leaves_nothing_to_be_assumed():
    model = mo.create_model("mambaout_femto", depths=(1, 1), dims=(4, 4))
    identity = identified(configurations.shapes(model, "mambaout"))
    assert identity.assumed == ""
    assert model_args(mo.create_model(identity.name, **identity.options)) == {"depths": (1, 1), "dims": (4, 4)}


def test_only_the_task_is_read_where_the_name_is_known():
    shapes = configurations.shapes(mo.create_model("mambaout_kobe", num_classes=7, in_chans=1))
    assert identified(shapes, "mambaout_femto")[1:] == ("mambaout_femto", {"num_classes": 7, "in_chans": 1}, "")
    del shapes["stages.0.blocks.0.norm.weight"], shapes["stages.0.blocks.0.conv.weight"]
    assert identified(shapes, "mambaout_kobe").options == {"num_classes": 7, "in_chans": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages.0.blocks.0.fc2.weight": None}, "stages.0.blocks.0.fc2.weight' is missing"),
        ({"stages.0.blocks.0.conv.weight": None, "head.fc.weight": None}, "stages.0.blocks.0.conv.weight' is missing"),
        ({"stages.99999999999.blocks.0.norm.bias": (8,)}, "stages.2' is missing"),
        ({f"stages.{'9' * 5000}.blocks.0.norm.bias": (8,)}, "shapes that do not go together"),
        ({"stages.0.blocks.5.norm.bias": (8,)}, "stages.0.blocks.1' is missing"),
        ({"stages.0.blocks.0.fc2.weight": (8,)}, "shapes that do not go together"),
        ({"stages.0.blocks.0.fc2.weight": (0, 0)}, "shapes that do not go together"),
        ({"stages.0.blocks.0.conv.weight": ()}, "shapes that do not go together"),
        ({"stages.0.blocks.0.fc2.weight": (10**12, 5)}, "shapes that do not go together"),
        ({"stages.0.blocks.0.fc2.weight": (16, 8)}, "shapes that do not go together"),
        ({"stages.0.blocks.0.fc2.weight": (10**30, 10**40)}, "shapes that do not go together"),
    ],
)
def test_shapes_of_no_model_are_one_sentence(changes, words):
    shapes = configurations.shapes(mo.create_model("mambaout_femto", depths=(1, 1), dims=(8, 16)))
    shapes = {key: shape for key, shape in {**shapes, **changes}.items() if shape is not None}
    with pytest.raises(ConvertError, match=words) as caught:
        identified(shapes)
    assert "\n" not in str(caught.value)
    assert "weights.safetensors: the weights are those of a MambaOut, but" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head.fc.weight": (0, 64)}, "num_classes is 0"),
        ({"stages.0.blocks.0.conv.weight": (8, 1, 4, 4)}, "kernel_size is 4"),
    ],
)
def test_shapes_of_a_model_that_nobody_builds_are_refused_by_the_model(changes, words):
    shapes = configurations.shapes(mo.create_model("mambaout_femto", depths=(1, 1), dims=(8, 16)))
    identity = identified({**shapes, **changes})
    with pytest.raises(ModelError, match=words):
        mo.create_model(identity.name, **identity.options)


def test_a_missing_classifier_does_not_hide_what_else_is_missing():
    model = pytorch.small_model()
    state_dict = mo.to_torch(model, pytorch.draw(model))
    del state_dict["head.fc.weight"], state_dict["stem.norm2.bias"]
    identity = identified(pytorch.shapes_of(state_dict))
    with pytest.raises(ConvertError, match=r"head\.fc\.weight is missing; stem\.norm2\.bias is missing"):
        mo.from_torch(mo.create_model(identity.name, **identity.options), state_dict)
