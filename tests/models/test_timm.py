"""Our models against a live timm with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mambaout_jax as mo
from tests.timm import TIMM_MODELS, load_timm

pytestmark = pytest.mark.torch

CASES = [
    ("mambaout_femto", (64, 64), {}),
    ("mambaout_femto", (75, 96), {"in_chans": 1, "num_classes": 7}),
    ("mambaout_small_rw", (64, 64), {"depths": (1, 2, 2, 1), "dims": (16, 24, 32, 40)}),
    ("mambaout_base_wide_rw", (64, 96), {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}),
    ("test_mambaout", (160, 160), {}),
    ("mambaout_tiny", (64, 64), {"depths": (1, 1), "dims": (16, 24), "kernel_size": 5, "stem_mid_norm": False}),
    ("mambaout_tiny", (64, 64), {"depths": (1, 1), "dims": (16, 24), "conv_ratio": 1.7, "expansion_ratio": 2.0}),
]


@pytest.mark.parametrize(("name", "size", "options"), CASES)
def test_logits_equal_timms(name, size, options):
    timm, torch = load_timm()
    torch.manual_seed(0)
    theirs = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = mo.create_model(name, img_size=size, **options)
    variables = mo.from_torch(ours, theirs.state_dict())
    images = np.random.default_rng(0).normal(size=(2, *size, ours.in_chans)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(ours.apply)(variables, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["test_mambaout", "vit_tiny_patch16_224"])
def test_outputs_without_classes_equal_timms(name):
    timm, torch = load_timm()
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    ours = mo.create_model(name, num_classes=0)
    variables = mo.from_torch(ours, theirs.state_dict())
    images = np.random.default_rng(0).normal(size=(2, *ours.input_spec.size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        pooled = jax.jit(ours.apply)(variables, jnp.asarray(images))
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_input_spec_and_names_are_timms(name):
    timm, _ = load_timm()
    model, theirs = mo.create_model(name), timm.get_pretrained_cfg(name)
    spec = model.input_spec
    assert ".".join(model.classifier) == theirs.classifier
    assert (3, *spec.size) == theirs.input_size
    assert spec.mean == theirs.mean
    assert spec.std == theirs.std
    assert spec.crop_pct == theirs.crop_pct
    assert spec.crop_mode == theirs.crop_mode
    assert spec.interpolation == theirs.interpolation
