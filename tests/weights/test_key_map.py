"""Key maps are data: rules of every kind convert a state dict to variables and back, bit for bit.

The state dicts are made up after those of Vim, VMamba, PlainMamba, LocalMamba and MambaVision.
"""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mambaout_jax as mo
from mambaout_jax.models import families
from mambaout_jax.models.key_format import IDENTITY, KeyFormat, Rule, Transform, permute, same_names
from mambaout_jax.weights import WeightsError
from mambaout_jax.weights.key_map import from_torch_key, is_ignored, tensor_specs, to_torch_key
from mambaout_jax.weights.state_dict import export_state_dict, load_state_dict
from tests.weights import pytorch

E, N, R = 6, 4, 2  # channels, states, rank of dt


def numbers(*shape):
    """Draw a tensor that has no value twice."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def ssm():
    """Shapes of one direction's state space model as our layers have it."""
    shapes = {"x_proj": {"weight": (E, R + 2 * N)}, "dt_proj": {"weight": (R, E), "bias": (E,)}, "A_log": (E, N)}
    return shapes | {"D": (E,)}


def variables_of(params, batch_stats=None):
    """Build variables of ShapeDtypeStruct from nested dicts of shapes."""
    shapes = {"params": params, "batch_stats": batch_stats or {}}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def load(key_format, variables, state_dict):
    shapes = {key: value.shape for key, value in state_dict.items()}
    return load_state_dict("toy", variables, key_format, state_dict, shapes)


def round_trip(key_format, variables, state_dict):
    """Check that import and export are each other's inverse, and return what was imported."""
    read = load(key_format, variables, state_dict)
    written = export_state_dict("toy", variables, key_format, read)
    kept = {key: value for key, value in state_dict.items() if not is_ignored(key_format, key)}
    pytorch.assert_equal_state_dicts(written, kept)
    pytorch.assert_equal_trees(load(key_format, variables, written), read)
    return jax.tree.map(np.asarray, read)


VIM = KeyFormat(
    "vim",
    (
        *same_names("layers.#.mixer.in_proj.*"),
        Rule("layers.#.mixer.A_b_log", "layers.#.mixer.ssm.1.A_log"),
        Rule("layers.#.mixer.D_b", "layers.#.mixer.ssm.1.D"),
        Rule("layers.#.mixer.x_proj_b.*", "layers.#.mixer.ssm.1.x_proj.*"),
        Rule("layers.#.mixer.dt_proj_b.*", "layers.#.mixer.ssm.1.dt_proj.*"),
        Rule("layers.#.mixer.x_proj.*", "layers.#.mixer.ssm.0.x_proj.*"),
        Rule("layers.#.mixer.dt_proj.*", "layers.#.mixer.ssm.0.dt_proj.*"),
        Rule("layers.#.mixer.*", "layers.#.mixer.ssm.0.*"),
    ),
)


def test_leaves_are_renamed_not_only_layers():
    def direction(suffix, a_log):
        return {
            f"x_proj{suffix}.weight": numbers(R + 2 * N, E),
            f"dt_proj{suffix}.weight": numbers(E, R),
            f"dt_proj{suffix}.bias": numbers(E),
            a_log: numbers(E, N),
            f"D{suffix}": numbers(E),
        }

    mixer = {"in_proj.weight": numbers(2 * E, 3), **direction("", "A_log"), **direction("_b", "A_b_log")}
    state_dict = {f"layers.{layer}.mixer.{key}": value for layer in range(2) for key, value in mixer.items()}
    state_dict["layers.1.mixer.A_b_log"] = -state_dict["layers.1.mixer.A_b_log"]
    shapes = {"in_proj": {"weight": (3, 2 * E)}, "ssm": {0: ssm(), 1: ssm()}}
    variables = variables_of({"layers": {0: {"mixer": shapes}, 1: {"mixer": shapes}}})
    layers = round_trip(VIM, variables, state_dict)["params"]["layers"]
    np.testing.assert_array_equal(layers[1]["mixer"]["ssm"][1]["A_log"], state_dict["layers.1.mixer.A_b_log"])
    np.testing.assert_array_equal(layers[0]["mixer"]["ssm"][0]["A_log"], state_dict["layers.0.mixer.A_log"])


VMAMBA = KeyFormat(
    "vmamba",
    (
        Rule("layers.#.op.x_proj_weight", "layers.#.ssm.@.x_proj.weight", join="stack"),
        Rule("layers.#.op.dt_projs_weight", "layers.#.ssm.@.dt_proj.weight", join="stack"),
        Rule("layers.#.op.dt_projs_bias", "layers.#.ssm.@.dt_proj.bias", join="stack"),
        Rule("layers.#.op.A_logs", "layers.#.ssm.@.A_log", join="concatenate"),
        Rule("layers.#.op.Ds", "layers.#.ssm.@.D", join="concatenate"),
        Rule("patch_embed.0.*", "stem.conv.*"),
    ),
)


def vmamba(directions=4):
    state_dict = {
        "layers.0.op.x_proj_weight": numbers(directions, R + 2 * N, E),
        "layers.0.op.dt_projs_weight": numbers(directions, E, R),
        "layers.0.op.dt_projs_bias": numbers(directions, E),
        "layers.0.op.A_logs": numbers(directions * E, N),
        "layers.0.op.Ds": numbers(directions * E),
    }
    return variables_of({"layers": {0: {"ssm": {k: ssm() for k in range(directions)}}}}), state_dict


def test_one_tensor_holds_the_directions_in_order():
    variables, state_dict = vmamba()
    directions = round_trip(VMAMBA, variables, state_dict)["params"]["layers"][0]["ssm"]
    for k, direction in directions.items():
        np.testing.assert_array_equal(direction["x_proj"]["weight"], state_dict["layers.0.op.x_proj_weight"][k].T)
        np.testing.assert_array_equal(direction["dt_proj"]["weight"], state_dict["layers.0.op.dt_projs_weight"][k].T)
        np.testing.assert_array_equal(direction["A_log"], state_dict["layers.0.op.A_logs"][k * E : (k + 1) * E])
        np.testing.assert_array_equal(direction["D"], state_dict["layers.0.op.Ds"][k * E : (k + 1) * E])


def test_directions_are_in_the_order_of_their_numbers_not_of_their_digits():
    variables, state_dict = vmamba(11)
    directions = round_trip(VMAMBA, variables, state_dict)["params"]["layers"][0]["ssm"]
    np.testing.assert_array_equal(directions[10]["D"], state_dict["layers.0.op.Ds"][-E:])


def test_another_number_of_directions_is_a_difference_of_shape():
    variables, _ = vmamba(4)
    _, state_dict = vmamba(3)
    with pytest.raises(WeightsError, match=r"layers.0.op.A_logs has shape \(18, 4\), expected \(24, 4\); "):
        load(VMAMBA, variables, state_dict)


PLAIN = KeyFormat(
    "plainmamba",
    (
        Rule("backbone.patch_embed.stem.0.*", "stem.conv.*"),
        Rule("backbone.patch_embed.stem.1.*", "stem.norm.*"),
        Rule("backbone.pos_embed", "pos_embed"),
    ),
    ignored=("ema_*", "**.num_batches_tracked", "rope.freqs_*"),
)


def batch_norm():
    variables = variables_of(
        {"stem": {"conv": {"weight": (7, 7, 3, 8)}, "norm": {"weight": (8,), "bias": (8,)}}, "pos_embed": (1, 9, 8)},
        {"stem": {"norm": {"running_mean": (8,), "running_var": (8,)}}},
    )
    stem = "backbone.patch_embed.stem"
    state_dict = {
        f"{stem}.0.weight": numbers(8, 3, 7, 7),
        **{f"{stem}.1.{leaf}": numbers(8) + i for i, leaf in enumerate(("weight", "bias", "running_mean"))},
        f"{stem}.1.running_var": np.abs(numbers(8)),
        "backbone.pos_embed": numbers(1, 9, 8),
    }
    return variables, state_dict


IGNORED = {
    "backbone.patch_embed.stem.1.num_batches_tracked": np.array(500, np.int64),
    "ema_backbone_stem_weight": numbers(3).astype(np.float64),
    "rope.freqs_cos": np.full(3, np.nan, np.float32),
}


@pytest.mark.parametrize("ignored", [{}, IGNORED], ids=["absent", "present"])
def test_running_statistics_are_batch_stats_and_buffers_without_values_are_ignored(ignored):
    variables, state_dict = batch_norm()
    read = round_trip(PLAIN, variables, {**state_dict, **ignored})
    mean = read["batch_stats"]["stem"]["norm"]["running_mean"]
    np.testing.assert_array_equal(mean, state_dict["backbone.patch_embed.stem.1.running_mean"])
    assert not {"running_mean", "running_var"} & read["params"]["stem"]["norm"].keys()


def test_what_no_rule_ignores_is_left_over_and_all_faults_are_listed():
    variables, state_dict = batch_norm()
    del state_dict["backbone.patch_embed.stem.1.running_var"]
    state_dict |= {"num_batches_tracked": numbers(), "backbone.pos_embed": numbers(1, 4, 8)}
    with pytest.raises(WeightsError) as caught:
        load(PLAIN, variables, {**state_dict, **IGNORED})
    assert str(caught.value) == (
        "the weights do not fit toy: backbone.patch_embed.stem.1.running_var is missing; "
        "backbone.pos_embed has shape (1, 4, 8), expected (1, 9, 8); num_batches_tracked is unexpected"
    )


LINEAR = KeyFormat("linear", same_names("mlp.*.*"), linear=("mlp.fc1.weight",))


def test_a_linear_layer_may_be_stored_as_a_1x1_convolution_where_the_format_says_so():
    variables = variables_of({"mlp": {name: {"weight": (E, R)} for name in ("fc1", "fc2")}})
    matrices = {f"mlp.{name}.weight": numbers(R, E) for name in ("fc1", "fc2")}
    expected = round_trip(LINEAR, variables, matrices)
    convolution = {"mlp.fc1.weight": matrices["mlp.fc1.weight"][:, :, None, None]}
    pytorch.assert_equal_trees(load(LINEAR, variables, {**matrices, **convolution}), expected)
    for key, shape in (("fc2", (R, E, 1, 1)), ("fc1", (R, E, 1, 2)), ("fc1", (R, E, 1))):
        with pytest.raises(WeightsError, match=rf"mlp.{key}.weight has shape \({R}, {E}, 1"):
            load(LINEAR, variables, {**matrices, f"mlp.{key}.weight": np.zeros(shape, np.float32)})


LOCAL = KeyFormat("localvim", (Rule(tuple(f"layers.#.A_log_{k}" for k in range(4)), "layers.#.A_log"),))


def test_tied_tensors_are_one_parameter():
    tensor = numbers(E, N)
    state_dict = {f"layers.0.A_log_{k}": tensor.copy() for k in range(4)}
    variables = variables_of({"layers": {0: {"A_log": (E, N)}}})
    read = round_trip(LOCAL, variables, state_dict)
    np.testing.assert_array_equal(read["params"]["layers"][0]["A_log"], tensor)
    state_dict["layers.0.A_log_2"][3, 1] += 1
    with pytest.raises(
        WeightsError, match=r"layers\.0\.A_log_2 differs from layers\.0\.A_log_0; expected equal tensors"
    ):
        load(LOCAL, variables, state_dict)


POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
NEGATED = Transform(np.negative, np.negative)
FLAT = Transform(lambda x: x.reshape(2, 3), lambda x: x.reshape(6))


@pytest.mark.parametrize(
    ("transform", "ours", "torch"),
    [
        (None, (4, 5), (5, 4)),
        (IDENTITY, (4, 5), (4, 5)),
        (POINTWISE, (4, 5), (5, 4, 1, 1)),
        (NEGATED, (4, 5), (4, 5)),
        (FLAT, (2, 3), (6,)),
        (permute(2, 0, 1), (4, 5, 6), (5, 6, 4)),
    ],
    ids=["default", "identity", "pointwise", "negate", "reshape", "permute"],
)
def test_a_rule_changes_axes_or_values_by_its_transform(transform, ours, torch):
    key_format = KeyFormat("toys", (Rule("a.weight", "b.weight", transform),))
    tensor = numbers(*torch)
    read = round_trip(key_format, variables_of({"b": {"weight": ours}}), {"a.weight": tensor})
    expected = tensor.T if transform is None else transform.from_torch(tensor)
    np.testing.assert_array_equal(read["params"]["b"]["weight"], expected)


def test_a_rule_with_a_transform_is_stacked_part_by_part():
    key_format = KeyFormat("toys", (Rule("a", "b.@.weight", POINTWISE, join="stack"),))
    tensor = numbers(2, 5, 4, 1, 1)
    read = round_trip(key_format, variables_of({"b": {k: {"weight": (4, 5)} for k in range(2)}}), {"a": tensor})
    np.testing.assert_array_equal(read["params"]["b"][1]["weight"], tensor[1, :, :, 0, 0].T)


def test_the_first_matching_rule_is_applied():
    first, second = Rule("norm.*", "head.norm.*"), Rule("other.norm.*", "head.norm.*")
    assert to_torch_key(KeyFormat("toys", (first, second)), "head.norm.bias") == "norm.bias"
    assert to_torch_key(KeyFormat("toys", (second, first)), "head.norm.bias") == "other.norm.bias"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((), "key format 'toys' has no rule for a.weight; add one to its rules"),
        ((Rule("x.*", "a.*"), Rule("x.*", "b.*")), "maps two variables to x.weight, one of them b.weight"),
    ],
)
def test_rules_that_do_not_cover_a_model_are_an_error(rules, words):
    variables = variables_of({"a": {"weight": (2, 2)}, "b": {"weight": (2, 2)}})
    with pytest.raises(WeightsError, match=words):
        tensor_specs(variables, KeyFormat("toys", rules))


def test_joined_variables_of_unequal_shapes_are_an_error():
    variables = variables_of({"a": {0: {"D": (2,)}, 1: {"D": (3,)}}})
    with pytest.raises(WeightsError, match=r"joined in Ds have shapes \(\(2,\), \(3,\)\); expected equal shapes"):
        tensor_specs(variables, KeyFormat("toys", (Rule("Ds", "a.@.D", join="concatenate"),)))


@pytest.mark.parametrize(
    "rule", [("a.#", "b"), ("a.#.*", "b.*.#"), (("a.#", "a"), "b.#"), ("a", "b.@"), ("a", "b", None, "stack")], ids=str
)
def test_a_rule_whose_patterns_do_not_correspond_cannot_be_written(rule):
    with pytest.raises(ValueError, match=r"the patterns of .* differ"):
        Rule(*rule)


@pytest.mark.slow
@given(st.integers(0, 200), st.integers(0, 200), st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True))
def test_wildcards_keep_numbers_and_names_in_order(stage, block, leaf):
    key_format = KeyFormat("toys", (Rule("s.#.#.*", "stages.#.blocks.#.norm.*"),))
    key, path = f"s.{stage}.{block}.{leaf}", f"stages.{stage}.blocks.{block}.norm.{leaf}"
    assert (from_torch_key(key_format, key), to_torch_key(key_format, path)) == (path, key)
    assert from_torch_key(key_format, f"{key}.more") is None
    assert to_torch_key(key_format, path.replace("norm", "norm1")) is None


@pytest.mark.run
@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_key_format_of_every_family_is_invertible(family):
    """Import after export and export after import change no bit, for every variant at small size."""
    seen = set()
    for name in family.variants:
        model = pytorch.small_model(name)
        variables = pytorch.draw(model)
        for key_format in family.key_formats:
            if all(model.options[key] == value for key, value in key_format.fixed.items()):
                state_dict = mo.to_torch(model, variables, key_format.name)
                back = mo.from_torch(model, state_dict)
                pytorch.assert_equal_trees(back, variables)
                pytorch.assert_equal_state_dicts(mo.to_torch(model, back, key_format.name), state_dict)
                keys = {key for key in state_dict if not is_ignored(key_format, key)}
                assert {to_torch_key(key_format, from_torch_key(key_format, key)) for key in keys} == keys
                seen.add(key_format.name)
    assert seen == {key_format.name for key_format in family.key_formats}
