"""Vim has the scans and class tokens of its reference, and the initial values that it ends up with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.models.layers.rotation import rotate_patches
from mambaout_jax.models.layers.vision_mamba import CLASS_TOKENS
from tests.weights import pytorch

SMALL = {"patch_size": 8, "stride": 8, "embed_dim": 24, "depth": 2, "d_state": 4, "num_classes": 5}


def small_model(**options):
    return mo.create_model("vim_tiny", **{"img_size": 32, **SMALL, **options})


def images(size=(32, 32), batch=2):
    return jax.random.normal(jax.random.key(7), (batch, *size, 3))


def drawn(model, scale=0.3):
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), pytorch.draw(model))


def module_of(model, variables):
    return nnx.merge(model._graphdef, variables["params"], variables["batch_stats"])


def small_module(class_token, **options):
    model = small_model(class_token=class_token, **options)
    return module_of(model, drawn(model))


def scan_by_steps(x, z, branch):
    """Compute a Mamba block without its outer projections step by step, in NumPy."""
    A_log, weight, bias = branch["A_log"], branch["conv1d"]["weight"][:, 0], branch["conv1d"]["bias"]
    padded = np.pad(x, ((3, 0), (0, 0)))
    u = np.stack([(padded[t : t + 4] * weight).sum(0) + bias for t in range(len(x))])
    u = u / (1 + np.exp(-u))
    rank = branch["dt_proj"]["weight"].shape[0]
    dt, B, C = np.split(u @ branch["x_proj"]["weight"], [rank, rank + A_log.shape[1]], axis=1)
    delta = np.log1p(np.exp(dt @ branch["dt_proj"]["weight"] + branch["dt_proj"]["bias"]))
    state, rows = np.zeros(A_log.shape), []
    for t in range(len(x)):
        state = np.exp(-delta[t][:, None] * np.exp(A_log)) * state + (delta[t] * u[t])[:, None] * B[t]
        rows.append(state @ C[t] + branch["D"] * u[t])
    return np.stack(rows) * z / (1 + np.exp(-z))


@pytest.mark.parametrize("divide_out", [True, False])
@pytest.mark.parametrize("bimamba_type", ["none", "v1", "v2"])
def test_a_mixer_scans_in_the_directions_of_its_type(bimamba_type, divide_out):
    model = small_model(bimamba_type=bimamba_type, divide_out=divide_out, init_layer_scale=0.5)
    variables = drawn(model)
    mixer = module_of(model, variables).layers[0].mixer
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["layers"][0]["mixer"])
    x = np.random.default_rng(1).normal(size=(7, 24))
    xs, z = np.split(x @ params["in_proj"]["weight"], 2, axis=1)
    y = scan_by_steps(xs, z, params["forward"])
    if bimamba_type == "v2":
        y = y + scan_by_steps(xs[::-1], z[::-1], params["backward"])[::-1]
        y = y / 2 if divide_out else y
    elif bimamba_type == "v1":  # the convolution looks back in both directions, and the backward scan shares the rest
        y = y + reversed_scan(xs, z, params)
    expected = y @ params["out_proj"]["weight"] * params["gamma"]
    with jax.default_matmul_precision("highest"):
        ours = mixer(jnp.asarray(x, jnp.float32)[None])[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def reversed_scan(x, z, params):
    """Scan what the forward convolution and projections give from the last step to the first, in NumPy."""
    branch, A_log = params["forward"], params["backward"]["A_log"]
    padded = np.pad(x, ((3, 0), (0, 0)))
    u = np.stack([(padded[t : t + 4] * branch["conv1d"]["weight"][:, 0]).sum(0) for t in range(len(x))])
    u = u + branch["conv1d"]["bias"]
    u = u / (1 + np.exp(-u))
    rank = branch["dt_proj"]["weight"].shape[0]
    dt, B, C = np.split(u @ branch["x_proj"]["weight"], [rank, rank + A_log.shape[1]], axis=1)
    delta = np.log1p(np.exp(dt @ branch["dt_proj"]["weight"] + branch["dt_proj"]["bias"]))
    state, rows = np.zeros(A_log.shape), {}
    for t in reversed(range(len(x))):
        state = np.exp(-delta[t][:, None] * np.exp(A_log)) * state + (delta[t] * u[t])[:, None] * B[t]
        rows[t] = state @ C[t] + branch["D"] * u[t]
    return np.stack([rows[t] for t in range(len(x))]) * z / (1 + np.exp(-z))


@pytest.mark.parametrize(
    ("class_token", "positions"),
    [("none", []), ("first", [0]), ("middle", [8]), ("both", [0, 17]), ("random", [8])],
)
def test_class_tokens_are_put_among_the_patches_and_taken_out_of_maps(class_token, positions):
    model = small_model(class_token=class_token)
    module = module_of(model, drawn(model))
    embedding = module.pos_embed[...][0]
    tokens = module._tokens(images())[0][0] - embedding
    learned = {"none": [], "both": [module.cls_token_head, module.cls_token_tail] if class_token == "both" else []}
    expected = learned.get(class_token) or ([] if class_token == "none" else [module.cls_token])
    assert len(embedding) == 16 + len(positions)
    for position, token in zip(positions, expected, strict=True):
        np.testing.assert_allclose(tokens[position], token[0, 0], rtol=0, atol=1e-6)
    patches = module.patch_embed(images())[0]
    np.testing.assert_allclose(np.delete(tokens, positions, axis=0), patches, rtol=0, atol=1e-5)
    numbered = jnp.arange(16.0 + len(positions))[None, :, None]
    np.testing.assert_array_equal(module._patches(numbered)[0, :, 0], np.delete(numbered[0, :, 0], positions))


def test_a_random_class_token_has_every_position_equally_often():
    module = small_module("random")
    drawn_positions = jax.vmap(module._draw_position)(jax.random.split(jax.random.key(1), 1700))
    counts = np.bincount(drawn_positions, minlength=17)
    assert len(counts) == 17
    assert abs(counts - 100).max() < 50  # 5 standard deviations
    assert module._draw_position(None) is None
    assert small_module("middle")._draw_position(jax.random.key(1)) is None


def test_a_class_token_is_put_at_a_drawn_position_and_taken_out_of_maps():
    module = small_module("random")
    embedding = module.pos_embed[...][0]
    patches = module.patch_embed(images())[0]
    numbered = jnp.arange(17.0)[None, :, None]

    @jax.jit
    def at(position):
        return module._tokens(images(), position)[0][0] - embedding, module._patches(numbered, position)[0, :, 0]

    for position in range(17):
        tokens, others = at(position)
        np.testing.assert_allclose(tokens[position], module.cls_token[0, 0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.delete(tokens, position, axis=0), patches, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(others, np.delete(np.arange(17.0), position))


@pytest.mark.slow
def test_a_model_with_a_random_class_token_is_the_one_with_a_fixed_token_where_it_is_drawn():
    """The parameters are the same, and without a key the token is in the middle."""
    random, middle, first = (small_model(class_token=token, depth=1) for token in ("random", "middle", "first"))
    assert jax.tree.map(np.shape, random.shapes) == jax.tree.map(np.shape, middle.shapes)
    variables, x, module = drawn(random), images(batch=1), small_module("random", depth=1)
    keys = jax.random.split(jax.random.key(0), 100)
    positions = jax.vmap(module._draw_position)(keys).tolist()

    @jax.jit
    def outputs(key):
        drawn = [random.apply_train(variables, x, key=key, output=output)[0] for output in ("logits", "features")]
        fixed = [[model.apply(variables, x, output) for output in ("logits", "features")] for model in (middle, first)]
        return drawn, *fixed, [random.apply(variables, x, output) for output in ("logits", "features")]

    for position, index in ((8, 1), (0, 2)):
        found = outputs(keys[positions.index(position)])
        for pair in ((found[0], found[index]), (found[3], found[1])):
            for ours, theirs in zip(*map(jax.tree.leaves, pair), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("class_token", CLASS_TOKENS)
def test_the_classifier_gets_the_mean_of_the_class_tokens_or_of_all_tokens(class_token):
    model = small_model(class_token=class_token)
    variables = drawn(model)
    module = module_of(model, variables)
    x, _ = module._run(module._tokens(images()), None, 0, 2)
    where = list(module._class_positions(x.shape[1])) or slice(None)
    expected = module.head(module.norm_f(x)[:, np.arange(x.shape[1])[where]].mean(1))
    np.testing.assert_allclose(model.apply(variables, images()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("class_token", CLASS_TOKENS)
@pytest.mark.parametrize("img_size", [(48, 48), (32, 64)])
def test_position_embeddings_of_patches_are_resampled_and_those_of_class_tokens_kept(class_token, img_size):
    small, large = small_model(class_token=class_token), small_model(class_token=class_token, img_size=img_size)
    embedding = drawn(small)["params"]["pos_embed"]
    (resampled,) = large.resample_params({("pos_embed",): embedding}, (32, 32)).values()
    assert resampled.shape == large.shapes["params"]["pos_embed"].shape
    before, after = (
        module_of(model, drawn(model))._class_positions(x.shape[1])
        for model, x in ((small, embedding), (large, resampled))
    )
    np.testing.assert_array_equal(resampled[:, list(after)], embedding[:, list(before)])
    none = small_model(class_token="none", img_size=img_size)
    patches = np.delete(np.asarray(embedding), list(before), axis=1)
    (expected,) = none.resample_params({("pos_embed",): patches}, (32, 32)).values()
    np.testing.assert_array_equal(np.delete(resampled, list(after), axis=1), expected)


@pytest.mark.slow
def test_patches_overlap_at_a_smaller_stride():
    model = mo.create_model("vim_tiny_plus")
    assert model.shapes["params"]["pos_embed"].shape == (1, 27 * 27 + 1, 192)
    batch = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    (feature_map,) = jax.eval_shape(lambda v, x: model.apply(v, x, output="features"), model.shapes, batch)
    assert feature_map.shape == (1, 27, 27, 192)


@pytest.mark.slow
def test_maps_are_those_of_the_chosen_blocks():
    model, last = small_model(depth=3, out_indices=(0, 2)), small_model(depth=3)
    variables = drawn(model)
    maps = model.apply(variables, images(), output="features")
    assert len(maps) == len(model.feature_info) == 2
    np.testing.assert_allclose(maps[1], last.apply(variables, images(), output="features")[0], rtol=1e-6)
    first = {**variables, "params": {**variables["params"], "layers": {0: variables["params"]["layers"][0]}}}
    expected = small_model(depth=1).apply(first, images(), output="features")[0]
    np.testing.assert_allclose(maps[0], expected, rtol=1e-6)


def test_a_rotation_is_by_the_row_in_the_first_half_of_the_channels_and_by_the_column_in_the_second():
    x = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    y = np.asarray(rotate_patches(jnp.asarray(x), (2, 3), (2, 3)))
    pairs, turned = (v.reshape(2, 3, 4, 2) @ np.array([1, 1j]) for v in (x, y))
    rows, columns = np.arange(2)[:, None] / 2 * 14, np.arange(3) / 3 * 14
    for pair, angle in enumerate((rows, rows / 100, columns, columns / 100)):  # 10000 ** (-2 / 4)
        np.testing.assert_allclose(turned[..., pair], pairs[..., pair] * np.exp(1j * angle), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_class_token_that_comes_first_is_not_rotated():
    model = small_model(rope=True, class_token="first")
    block = module_of(model, drawn(model)).layers[0]
    x = jnp.ones((1, 17, 24))
    block.mixer = lambda x: 0 * x
    y, _ = block((x, x))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(y[:, 1:], rotate_patches(x[:, 1:], (4, 4), (4, 4)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope": True, "img_size": (32, 40), "class_token": "none"}, "square images"),
        ({"rope": True, "stride": 4, "class_token": "none"}, "the patch_size, 8"),
        ({"rope": True}, "expected 'none' or 'first' with rope"),
        ({"rope": True, "class_token": "random"}, "expected 'none' or 'first' with rope"),
        ({"rope": True, "class_token": "none", "embed_dim": 26}, "a multiple of 4"),
        ({"patch_size": 64}, "at least patch_size 64"),
        ({"out_indices": (1, 0)}, "increasing numbers from 0 to 1"),
        ({"out_indices": (2,)}, "increasing numbers from 0 to 1"),
        ({"class_token": "last"}, "class_token is 'last'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words):
        small_model(**options)


@pytest.mark.slow
def test_initial_values_of_a_mixer_are_those_that_the_reference_ends_up_with():
    model = mo.create_model("vim_tiny", depth=4, num_classes=2, init_layer_scale=0.1)
    mixer = model.init(jax.random.key(0))["params"]["layers"][1]["mixer"]

    def bound(weight):
        return float(jnp.abs(weight).max())

    np.testing.assert_allclose(bound(mixer["in_proj"]["weight"]), 192**-0.5, rtol=1e-2)
    np.testing.assert_allclose(bound(mixer["out_proj"]["weight"]), 384**-0.5 / math.sqrt(4), rtol=1e-2)
    for name in ("forward", "backward"):
        branch = mixer[name]
        np.testing.assert_allclose(bound(branch["x_proj"]["weight"]), 384**-0.5, rtol=1e-2)
        np.testing.assert_allclose(bound(branch["dt_proj"]["weight"]), 12**-0.5, rtol=1e-2)
        np.testing.assert_allclose(bound(branch["conv1d"]["weight"]), 0.5, rtol=2e-2)
        np.testing.assert_array_equal(branch["D"], 1.0)
        np.testing.assert_allclose(branch["A_log"], np.broadcast_to(np.log(np.arange(1, 17)), (384, 16)), rtol=1e-6)
    steps = jax.nn.softplus(mixer["forward"]["dt_proj"]["bias"])
    assert 1e-3 <= steps.min() < 2e-3
    assert 5e-2 < steps.max() <= 0.1 + 1e-6
    np.testing.assert_array_equal(mixer["backward"]["dt_proj"]["bias"], 0.0)
    np.testing.assert_array_equal(mixer["gamma"], np.float32(0.1))


@pytest.mark.slow
def test_the_initial_patch_embedding_is_cut_at_two_standard_deviations():
    weight = mo.create_model("vim_tiny").init(jax.random.key(0))["params"]["patch_embed"]["proj"]["weight"]
    std = 768**-0.5
    np.testing.assert_allclose(float(weight.std()), std, rtol=1e-2)
    assert 1.9 < float(jnp.abs(weight).max()) / (std / 0.8796) <= 2.0 + 1e-3
