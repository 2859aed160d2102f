"""LocalVim scans patches and class tokens as its reference does, with the initial values that it ends up with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mambaout_jax as mo
from mambaout_jax.models import ModelError
from mambaout_jax.models.localvim import model as localvim_model
from mambaout_jax.models.macs import count_macs
from tests.timm import load_timm
from tests.weights import pytorch

BLOCK = "h v_flip w2 w3_flip"
SMALL = {"patch_size": 8, "embed_dim": 24, "d_state": 4, "directions": (BLOCK,), "num_classes": 5}


def small_model(name="localvim_tiny", **options):
    return mo.create_model(name, **{"img_size": 32, **SMALL, **options})


def mixer_of(model, variables):
    return nnx.merge(model._graphdef, variables["params"], variables["batch_stats"]).layers[0].mixer


def drawn(model, scale=0.3):
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), pytorch.draw(model))


@pytest.mark.slow
def test_a_class_token_is_in_the_middle_of_every_scan_and_of_its_output(monkeypatch):
    model, seen = small_model(class_token=True, rope=False), []
    mixer = mixer_of(model, drawn(model))

    def record(x):
        seen.append(x[0, :, 0].astype(int).tolist())
        return x

    # Without projections and scans, the mixer only moves its input.
    for name, function in {
        "in_proj": lambda x: jnp.concatenate([x, x], 2),
        "scan_gate": jnp.array,
        "out_proj": jnp.array,
    }.items():
        monkeypatch.setattr(mixer, name, function)
    monkeypatch.setattr(mixer, "branches", (record,) * 4)
    monkeypatch.setattr(localvim_model, "scan_jointly", lambda xs, zs, impl: xs)
    tokens = jnp.asarray([*range(1, 9), 100, *range(9, 17)], jnp.float32)[None, :, None]
    np.testing.assert_array_equal(mixer(tokens), 4 * tokens)
    rows, columns, windows, padded = seen
    assert rows[:17] == [*range(1, 9), 100, *range(9, 17)]
    assert columns[:17] == [16, 12, 8, 4, 15, 11, 7, 3, 100, 14, 10, 6, 2, 13, 9, 5, 1]
    assert windows[:17] == [1, 2, 5, 6, 3, 4, 7, 8, 100, 9, 10, 13, 14, 11, 12, 15, 16]
    # Windows of 3x3 pad the map to 6x6, and the zeros come first; the class token keeps its position.
    assert padded[:11] == [0, 0, 0, 0, 0, 0, 0, 0, 100, 16, 0]
    assert {len(sequence) for sequence in seen} == {37}


@pytest.mark.slow
@pytest.mark.parametrize("class_token", [False, True])
def test_maps_that_are_not_square_are_scanned(class_token):
    model = small_model(class_token=class_token, rope=False, img_size=(32, 48))
    logits, maps = jax.jit(lambda v, x: [model.apply(v, x, output=output) for output in ("logits", "features")])(
        drawn(model), jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    )
    assert jnp.isfinite(logits).all()
    assert maps[0].shape == (1, 4, 6, 24)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rope": True}, {"class_token": True, "rope": False}], ids=str)
def test_the_last_patches_are_filled_with_zeros(options):
    model, padded = (small_model(img_size=size, **options) for size in ((36, 42), (40, 48)))
    assert model.shapes == padded.shapes
    images, variables = jax.random.normal(jax.random.key(0), (1, 36, 42, 3)), drawn(model)
    logits = model.apply(variables, images)
    filled = padded.apply(variables, jnp.pad(images, ((0, 0), (0, 4), (0, 6), (0, 0))))
    np.testing.assert_array_equal(logits, filled)
    assert not np.array_equal(logits, padded.apply(variables, jnp.pad(images, ((0, 0), (4, 0), (6, 0), (0, 0)))))


def test_rotary_tables_of_the_own_size_are_those_of_the_angles():
    tables = mo.to_torch(model := small_model(rope_size=32), drawn(model))
    rows, columns = np.arange(4)[:, None] / 4 * 14, np.arange(4)[None] / 4 * 14
    for first, position in ((0, rows), (12, columns)):
        for pair, rate in enumerate(10000 ** (-np.arange(0, 12, 2) / 12)):
            for name, function in (("cos", np.cos), ("sin", np.sin)):
                expected = np.broadcast_to(function(position * rate), (4, 4)).ravel()
                for channel in (first + 2 * pair, first + 2 * pair + 1):
                    np.testing.assert_allclose(tables[f"rope.freqs_{name}"][:, channel], expected, rtol=0, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("img_size", [(48, 48), (35, 71)])
def test_rotary_tables_of_another_size_are_interpolated_as_in_the_reference(img_size):
    _, torch = load_timm()
    own, other = (small_model(rope_size=32, img_size=size) for size in (32, img_size))
    tables, interpolated = (mo.to_torch(model, drawn(model)) for model in (own, other))
    grid = tuple(math.ceil(side / 8) for side in img_size)
    for name in ("rope.freqs_cos", "rope.freqs_sin"):
        as_map = torch.from_numpy(tables[name]).reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(as_map, grid, mode="bicubic", align_corners=False)
        np.testing.assert_allclose(interpolated[name], expected[0].flatten(1).T.numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_neighboring_blocks_with_equal_directions_are_one_loop_each():
    directions = (BLOCK, BLOCK, "h h_flip v v_flip", BLOCK, BLOCK, BLOCK)
    plain, scanned = (small_model(directions=directions, scan_blocks=scan) for scan in (False, True))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def lengths(model):
        equations = jax.make_jaxpr(lambda v, x: model.apply_train(v, x)[0])(model.shapes, image).eqns
        return [equation.params["length"] for equation in equations if equation.primitive.name == "scan"]

    assert (lengths(plain), lengths(scanned)) == ([], [2, 3])
    assert count_macs(plain.apply, plain.shapes, image) == count_macs(scanned.apply, scanned.shapes, image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope_size": 7}, "rope_size is 7; expected at least patch_size 8"),
        ({"class_token": True, "rope": True}, "class_token and rope"),
        ({"class_token": "random", "rope": False}, "class_token is 'random'"),
        ({"directions": ()}, "directions is empty"),
        ({"directions": ("h v",)}, "a block has 2 directions; expected 4"),
        ({"directions": ("h v w2 x",)}, "direction 'x' is unknown"),
        ({"directions": (BLOCK, " ")}, "a block has no directions"),
        ({"directions": BLOCK}, "expected a tuple of non-empty strings"),
        ({"embed_dim": 26, "class_token": False}, "a multiple of 4"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, words, no_type_checks):
    with pytest.raises(ModelError, match=words):
        small_model(**options)


@pytest.mark.slow
def test_initial_values_of_a_mixer_are_those_that_the_reference_ends_up_with():
    model = mo.create_model("localvim_tiny", directions=(BLOCK,) * 2, num_classes=2)
    mixer = model.init(jax.random.key(0))["params"]["layers"][1]["mixer"]
    bound = 384**-0.5 / math.sqrt(2)
    np.testing.assert_allclose(float(jnp.abs(mixer["out_proj"]["weight"]).max()), bound, rtol=1e-2)
    for branch in mixer["branches"].values():
        for name in ("x_proj", "dt_proj"):
            np.testing.assert_allclose(float(branch[name]["weight"].std()), 0.02, rtol=5e-2)
        np.testing.assert_array_equal(branch["dt_proj"]["bias"], 0.0)
        np.testing.assert_allclose(float(jnp.abs(branch["conv1d"]["weight"]).max()), 0.5, rtol=2e-2)
        np.testing.assert_array_equal(branch["D"], 1.0)
        np.testing.assert_allclose(branch["A_log"], np.broadcast_to(np.log(np.arange(1, 17)), (384, 16)), rtol=1e-6)


def test_the_initial_class_token_is_zero():
    model = small_model("localvim_tiny_middle_cls_token")
    assert not model.init(jax.random.key(0))["params"]["cls_token"].any()
