"""State dicts round-trip bit for bit, and mismatches are refused with all differences."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.models import find_family, variant_options
from mambaout_jax.models.key_format import KeyFormat, same_names
from mambaout_jax.weights import WeightsError
from mambaout_jax.weights.key_map import from_torch_key, matching_formats, to_torch_key
from mambaout_jax.weights.state_dict import load_state_dict, to_tensors
from tests.marks import slow_but
from tests.weights import pytorch

QUICK = ["mambaout_femto", "vim_tiny", "vit_tiny_patch16_224"]
FORMATS = [
    (name, key_format.name)
    for name in mo.list_models()
    for key_format in find_family(name).key_formats
    if key_format.fixed.items() <= variant_options(name).items()
]


@pytest.fixture
def state_dict():
    return mo.to_torch(model := pytorch.small_model(), pytorch.draw(model))


def refusal(model, source):
    with pytest.raises(WeightsError) as caught:
        mo.from_torch(model, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "key_format"), slow_but([item for item in FORMATS if item[0] in QUICK], FORMATS, "nightly")
)
def test_a_round_trip_in_any_key_format_keeps_every_bit(name, key_format):
    model = pytorch.small_model(name)
    variables = pytorch.draw(model)
    state_dict = mo.to_torch(model, variables, key_format)
    assert matching_formats(state_dict)[0][1].name == key_format
    assert {value.dtype for key, value in state_dict.items() if "num_batches" not in key} == {np.dtype("float32")}
    assert all(value.flags.c_contiguous for value in state_dict.values())
    back = mo.from_torch(model, state_dict)
    pytorch.assert_equal_trees(back, variables)
    pytorch.assert_equal_state_dicts(mo.to_torch(model, back, key_format), state_dict)


@pytest.mark.parametrize("name", slow_but(QUICK, mo.list_models(), "nightly"))
def test_every_name_of_a_full_variant_has_one_key_and_comes_back(name):
    model = mo.create_model(name)
    names = [
        jax.tree_util.keystr(path[1:], simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(model.shapes)
    ]
    for key_format in model.family.key_formats:
        if all(model.options[key] == value for key, value in key_format.fixed.items()):
            keys = [to_torch_key(key_format, name) for name in names]
            assert len({*keys} - {None}) == len(names)
            assert [from_torch_key(key_format, key) for key in keys] == names


def test_axes_are_those_of_pytorch(state_dict):
    model = pytorch.small_model()
    params = mo.from_torch(model, state_dict)["params"]
    block = params["stages"][1]["blocks"][1]
    matrix, kernel = (state_dict[f"stages.1.blocks.1.{layer}.weight"] for layer in ("fc1", "conv"))
    assert block["fc1"]["weight"][3, 5] == matrix[5, 3]
    assert block["conv"]["weight"][1, 2, 0, 7] == kernel[7, 0, 1, 2]
    assert params["stem"]["conv1"]["weight"][0, 2, 1, 6] == state_dict["stem.conv1.weight"][6, 1, 0, 2]


def test_a_read_tree_is_of_its_own(state_dict):
    model = pytorch.small_model()
    variables = mo.from_torch(model, state_dict)
    before = jax.tree.map(np.array, variables)
    for value in state_dict.values():
        value[...] = 0
    pytorch.assert_equal_trees(variables, before)


def test_special_values_keep_their_bits():
    model = pytorch.small_model()
    variables = pytorch.draw(model)
    odd = np.float32([-0.0, 1e-45, -1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny])
    variables["params"]["head"]["fc"]["bias"] = odd
    pytorch.assert_equal_trees(mo.from_torch(model, mo.to_torch(model, variables)), variables)


def test_bfloat16_is_widened_without_loss(state_dict):
    low = {key: value.astype(ml_dtypes.bfloat16) for key, value in state_dict.items()}
    model = pytorch.small_model()
    variables = mo.from_torch(model, low)
    widened = {key: value.astype(np.float32) for key, value in low.items()}
    pytorch.assert_equal_trees(variables, mo.from_torch(model, widened))
    pytorch.assert_equal_state_dicts(to_tensors(model, variables, dtype="bfloat16"), low)


def test_bfloat16_out_is_the_nearest_with_ties_to_even():
    model = pytorch.small_model()
    variables = pytorch.draw(model)
    # A step of bfloat16 above 1 is 2**-7.
    variables["params"]["head"]["fc"]["bias"] = np.float32(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9, 1]
    )
    low = to_tensors(model, variables, dtype="bfloat16")
    assert {value.dtype.name for value in low.values()} == {"bfloat16"}
    np.testing.assert_array_equal(low["head.fc.bias"].astype(np.float32), [1, 1 + 2**-6, 1 + 2**-7, -1, 1])


def test_a_prefix_that_a_wrapped_model_gives_is_taken_off(state_dict):
    model = pytorch.small_model()
    wrapped = {f"module.{key}": value for key, value in state_dict.items()}
    pytorch.assert_equal_trees(mo.from_torch(model, wrapped), mo.from_torch(model, state_dict))


def test_all_that_differs_is_listed_at_once(state_dict):
    del state_dict["stem.norm1.bias"], state_dict["head.fc.weight"]
    state_dict["stages.0.blocks.7.norm.weight"] = np.zeros(16, np.float32)
    state_dict["optimizer.lr"] = np.zeros((), np.float32)
    state_dict["stages.1.blocks.0.fc1.weight"] = state_dict["stages.1.blocks.0.fc1.weight"].T
    state_dict["head.fc.bias"] = np.zeros(6, np.float32)
    assert refusal(pytorch.small_model(), state_dict) == (
        "the weights do not fit mambaout_femto: "
        "head.fc.bias has shape (6,), expected (5,); head.fc.weight is missing; optimizer.lr is unexpected; "
        "stages.0.blocks.7.norm.weight is unexpected; "
        "stages.1.blocks.0.fc1.weight has shape (24, 128), expected (128, 24); stem.norm1.bias is missing"
    )


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("head.fc.bias", None, "head.fc.bias is missing"),
        ("stages.0.blocks.0.fc2.weight", np.transpose, r"has shape (42, 16), expected (16, 42)"),
        (
            "head.fc.bias",
            lambda x: np.where(np.arange(5) < 2, np.nan, x),
            "head.fc.bias has 2 non-finite values",
        ),
        ("stem.conv1.weight", lambda x: x / np.float32(0), "stem.conv1.weight has 216 non-finite values"),
        ("head.fc.bias", np.float16, "head.fc.bias is float16; expected float32 or bfloat16"),
        ("head.fc.bias", np.float64, "head.fc.bias is float64; expected float32 or bfloat16"),
        ("head.fc.bias", np.int64, "head.fc.bias is int64; expected float32 or bfloat16"),
        ("head.fc.bias", lambda x: x.tolist(), "the state dict has a list under 'head.fc.bias'; expected tensors"),
        ("head.fc.bias", lambda x: None, "the state dict has a NoneType under 'head.fc.bias'; expected tensors"),
        ("head.fc.bias", lambda x: x[0], "head.fc.bias has shape (), expected (5,)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_one_fault_is_named(state_dict, key, change, words):
    if change is None:
        del state_dict[key]
    else:
        state_dict[key] = change(state_dict[key])
    assert words in refusal(pytorch.small_model(), state_dict)


def test_one_key_too_many_is_named(state_dict):
    state_dict["head.fc.scale"] = np.zeros(5, np.float32)
    assert refusal(pytorch.small_model(), state_dict).endswith(": head.fc.scale is unexpected")


@pytest.mark.parametrize(
    "key", ["stages.99999999999.blocks.0.norm.bias", "stages.0.blocks.\u0660.norm.bias", "", ".", "*", "{}"]
)
def test_a_name_that_no_model_has_is_left_over(state_dict, key):
    state_dict[key] = np.zeros(16, np.float32)
    shown = key or "''"
    assert refusal(pytorch.small_model(), state_dict) == f"the weights do not fit mambaout_femto: {shown} is unexpected"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((), "the keys (none, ...)"),
        (
            ("stem.0.weight", "stem.1.bias", "stages.0.blocks.0.conv_dw.weight", "stages.0.blocks.0.gamma"),
            "stem.0.weight",
        ),
        (("cls_token", "pos_embed", "layers.0.attn.qkv.weight", "head.weight"), "cls_token"),
        (("weight",), "weight"),
    ],
)
def test_weights_of_another_model_are_told_from_ours(keys, words):
    told = refusal(pytorch.small_model(), {key: np.zeros(3, np.float32) for key in keys})
    assert words in told
    assert "match no known model; supported are MambaOut in key format timm, MambaOut in key format mambaout" in told


def test_a_key_that_is_no_name_is_told():
    assert "has a ndarray under 0; expected tensors by name" in refusal(pytorch.small_model(), {0: np.zeros(3)})


def test_variables_of_another_model_are_refused_with_the_first_differences():
    model, other = pytorch.small_model(), pytorch.small_model(depths=(1, 3), stem_mid_norm=False, num_classes=4)
    with pytest.raises(WeightsError, match=r"^the variables do not fit mambaout_femto: ") as caught:
        mo.to_torch(model, other.init(jax.random.key(0)))
    words = str(caught.value)
    assert "params.head.fc.weight has shape (96, 4), expected (96, 5)" in words
    assert len(words.split(";")) == 6 + 1
    assert words.endswith(f"; and {8 + 2 + 2 - 6} more")


def test_lists_that_a_file_keeps_under_strings_are_the_same_lists():
    model = pytorch.small_model(depths=(1, 11))
    variables = pytorch.draw(model)

    def with_strings(node):
        return {str(key): with_strings(value) for key, value in node.items()} if isinstance(node, dict) else node

    read = mo.to_torch(model, with_strings(variables))
    pytorch.assert_equal_state_dicts(read, mo.to_torch(model, variables))


@pytest.mark.parametrize("name", [name for name in mo.list_models() if name.endswith("_rw")] + ["test_mambaout"])
def test_the_original_names_refuse_what_the_original_cannot_build(name):
    model = pytorch.small_model(name)
    with pytest.raises(WeightsError, match=f"^key format 'mambaout' cannot express {name}: .*stem_mid_norm is False"):
        mo.to_torch(model, pytorch.draw(model), "mambaout")


def test_unknown_words_are_answered_with_the_known():
    model = pytorch.small_model()
    with pytest.raises(
        WeightsError, match=r"^mambaout_femto has no key format 'flax'; expected one of timm, mambaout$"
    ):
        mo.to_torch(model, pytorch.draw(model), "flax")
    with pytest.raises(WeightsError, match=r"^dtype is 'float16'; expected float32 or bfloat16$"):
        to_tensors(model, pytorch.draw(model), dtype="float16")


def test_a_negative_variance_is_named():
    key_format = KeyFormat("toy", same_names("bn.*"))
    expected = {"batch_stats": {"bn": {"running_var": jax.ShapeDtypeStruct((3,), jnp.float32)}}}
    tensors = {"bn.running_var": np.float32([1, -1, -2])}
    with pytest.raises(WeightsError, match=r"bn\.running_var has 2 negative values; a variance is at least 0"):
        load_state_dict("toy", expected, key_format, tensors, {"bn.running_var": (3,)})
