"""Helpers of the conversion tests: models of timm, and state dicts without PyTorch."""

import functools

import jax
import numpy as np

import mambaout_jax as mo
from mambaout_jax.models import find_family
from mambaout_jax.weights import TorchCheckpoint
from tests.models import golden
from tests.timm import load_timm

SHALLOW = {"num_classes": 5, **golden.shallow_options("mambaout")}
# The variants that the original repository has.
ORIGINAL = ("mambaout_base", "mambaout_femto", "mambaout_kobe", "mambaout_small", "mambaout_tiny")


def noisy_timm(name, seed=0, **options):
    """Build timm's model with values at which norms, scales and biases matter too."""
    timm, torch = load_timm()
    torch.manual_seed(seed)
    with torch.device("meta"):  # timm's own initial values take seconds to draw
        theirs = timm.create_model(name, **options).eval()
    theirs.to_empty(device="cpu")
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.03)
            else:
                parameter.normal_(1.0 if key.endswith("weight") else 0.0, 0.2)
    return theirs


def timm_logits(theirs, images):
    """Return timm's logits of images that are channels last."""
    _, torch = load_timm()
    with torch.inference_mode():
        return theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def logits_of(model, variables, images):
    """Return our logits at the highest precision."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply)(variables, images))


def random_images(model, size=None, count=1):
    """Draw images as they look after normalisation."""
    shape = (count, *(size or model.input_spec.size), model.in_chans)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def relative_difference(logits, expected):
    """Return the largest difference over the largest logit."""
    return np.abs(logits - expected).max() / np.abs(expected).max()


@functools.cache
def small_model(name="mambaout_femto", **options):
    """Build a variant at small depths and widths."""
    shallow = golden.shallow_options(find_family(name).name)
    return mo.create_model(name, img_size=32, **{"num_classes": 5, **shallow, **options})


def draw(model, seed=0):
    """Draw variables without repeated values, so that swaps are detected."""
    rng = np.random.default_rng(seed)

    def values(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return np.abs(noise) if path[-1].key == "running_var" else noise

    return jax.tree.map_with_path(values, jax.eval_shape(model.init, jax.random.key(0)))


def checkpoint_of(shapes, config=None):
    """Return a checkpoint with shapes only."""
    return TorchCheckpoint("weights.safetensors", {}, shapes, dict.fromkeys(shapes, "float32"), None, (), config)


def shapes_of(state_dict):
    """Return the shapes of a state dict."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def assert_equal_trees(a, b):
    """Compare two trees of variables, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def assert_equal_state_dicts(a, b):
    """Compare two state dicts of arrays, bit for bit."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        x, y = np.asarray(value), np.asarray(b[key])
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), key
