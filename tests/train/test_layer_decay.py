"""Layers are in the order in which a model uses them, and their updates are scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from mambaout_jax.train.layer_decay import layer_scales
from mambaout_jax.train.program import build_optimizer
from tests.marks import slow_but
from tests.models import golden
from tests.models.test_families import small
from tests.train import tiny


def layers(model, decay=0.5):
    """Return the number of layers above that of each parameter, by path."""
    scales = jax.tree.leaves_with_path(layer_scales(model, decay))
    return {tuple(entry.key for entry in path): round(float(np.log(scale) / np.log(decay))) for path, scale in scales}


def test_stem_blocks_and_head_of_a_hierarchical_model():
    model = mo.create_model("mambaout_femto", depths=(1, 2, 1, 1), dims=(4, 8, 8, 8), img_size=32)
    found = layers(model)
    assert {found[path] for path in found if path[0] == "stem"} == {9}
    # Stage by stage, what reduces the map before its blocks.
    order = [("stages", 0, "blocks", 0), ("stages", 1, "downsample"), ("stages", 1, "blocks", 0)]
    order += [("stages", 1, "blocks", 1), ("stages", 2, "downsample"), ("stages", 2, "blocks", 0)]
    order += [("stages", 3, "downsample"), ("stages", 3, "blocks", 0)]
    for above, prefix in enumerate(reversed(order), 1):
        assert {layer for path, layer in found.items() if path[: len(prefix)] == prefix} == {above}
    assert {found[path] for path in found if path[0] == "head"} == {0}


def test_embeddings_and_norm_of_a_vit():
    model = mo.create_model("deit_tiny_patch16_224", depth=3, embed_dim=12, img_size=32)
    found = layers(model)
    for path, above in found.items():
        expected = 3 - path[1] if path[0] == "blocks" else 0 if path[0] in ("norm", "head") else 4
        assert above == expected, path


@pytest.mark.parametrize("backbone", ["mambaout_femto", "vit_tiny_patch16_224"])
def test_everything_outside_of_a_backbone_is_in_the_last_layer(backbone):
    sizes = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)} if "femto" in backbone else {"depth": 4, "embed_dim": 12}
    model = mo.create_model("upernet", backbone=backbone, num_classes=3, img_size=64, channels=8, **sizes)
    found = layers(model)
    assert {found[path] for path in found if path[0] != "backbone"} == {0}
    inside = {found[path] for path in found if path[0] == "backbone"}
    assert inside - {0} == set(range(1, max(inside) + 1))
    assert {found[path] for path in found if path[: len(model.first_conv)] == model.first_conv} == {max(inside)}


@pytest.mark.parametrize("name", slow_but(["mambaout-conv"], golden.first_small_models()))
def test_every_family_has_a_layer_for_each_block(name):
    model = small(name)
    found = layers(model)
    assert found.keys() == {tuple(e.key for e in path) for path, _ in jax.tree.leaves_with_path(model.shapes["params"])}
    assert sorted(set(found.values())) == list(range(max(found.values()) + 1))
    assert {found[path] for path in found if path[: len(model.first_conv)] == model.first_conv} == {max(found.values())}
    assert {found[path] for path in found if path[: len(model.classifier)] == model.classifier} == {0}


def test_blocks_in_a_loop_have_the_same_layers():
    options = {"depths": (2, 2, 1, 1), "dims": (4, 8, 8, 8), "img_size": 32}
    plain, loop = (mo.create_model("mambaout_femto", scan_blocks=scan, **options) for scan in (False, True))
    assert layers(plain) == layers(loop)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_updates_are_scaled_with_their_weight_decay(optimizer):
    config, decayed = (tiny.config(**{"optim.name": optimizer, "optim.layer_decay": d}) for d in (None, 0.5))
    model = config.build_task().build_model({"class_names": list("ab")})
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), model.shapes["params"])
    gradients = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), params)
    updates = []
    for each in (config, decayed):
        _, transformation = build_optimizer(each, model, 10)
        updates.append(transformation.update(gradients, transformation.init(params), params)[0])
    scales = layer_scales(model, 0.5)
    for plain, scaled, scale in zip(*map(jax.tree.leaves, (*updates, scales)), strict=True):
        np.testing.assert_allclose(scaled, scale * plain, rtol=1e-6)
