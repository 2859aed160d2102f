"""Proof that weights mean the same on both sides: equal logits of equal images, in float32 at the highest precision."""

import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mambaout_jax.extras import importing
from mambaout_jax.models import Model, cpu_compiler_options, create_model
from mambaout_jax.weights.errors import ConvertError
from mambaout_jax.weights.hub import PREFIXES
from mambaout_jax.weights.options import model_args

# Largest difference of two logits, over the largest logit. Sums of some thousand float32 products in another order
# differ by some 1e-6 of it, a layer that is swapped or transposed by more than 1e-2.
TOLERANCE = 1e-4


class LogitsCheck:
    """A comparison of the logits of weights with those of a reference.

    Args:
        reference: variables of the model.
        images: normalised.
    """

    def __init__(self, model: Model, reference: dict[str, Any], images: Float[np.ndarray, "b h w c"]):
        self._model = model
        self._images = images
        exact = create_model(model.name, **{"img_size": model.input_spec.size, **model.options, "dtype": "float32"})
        shapes = (
            jax.eval_shape(model.init, jax.random.key(0)),
            jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32),
        )
        # A TPU would compute float32 products from bfloat16 passes otherwise.
        with jax.default_matmul_precision("highest"):
            self._apply = jax.jit(exact.apply, compiler_options=cpu_compiler_options()).lower(*shapes).compile()
        self._expected = self._logits(reference)

    def _logits(self, variables: dict[str, Any]) -> np.ndarray:
        # One image at a time takes the least memory, and no more time.
        return np.concatenate([self._apply(variables, image[None]) for image in self._images])

    def difference(self, variables: dict[str, Any]) -> float:
        """Compute the largest difference as a share of the largest logit; infinite where a logit is not finite."""
        return difference(self._logits(variables), self._expected)

    def require(self, what: str, variables: dict[str, Any]) -> str:
        """Check that the weights agree with the reference, and return a sentence on the difference.

        Args:
            what: the weights are; begins the sentence.

        Raises:
            ConvertError: they are further than `TOLERANCE`.
        """
        return _judge(what, self.difference(variables))

    def require_timm(self, source: str) -> str:
        """Check that a live timm, which reads `source` by itself, agrees with the reference, and return a sentence.

        Raises:
            ConvertError: it is further than `TOLERANCE`, or does not take the weights.
            MissingExtraError: it is not installed.
        """
        theirs = timm_logits(self._model, source, self._images)
        return _judge(f"timm {_load_timm()[0].__version__}", difference(theirs, self._expected))


def random_images(model: Model, count: int) -> Float[np.ndarray, "b h w c"]:
    """Draw images as they are after normalisation, the same each time."""
    shape = (count, *model.input_spec.size, model.in_chans)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def difference(logits: Float[np.ndarray, "b k"], expected: Float[np.ndarray, "b k"]) -> float:
    """Compute the largest difference as a share of the largest logit; infinite if some are not finite or missing."""
    if logits.shape != expected.shape or not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _judge(what: str, found: float) -> str:
    if not found <= TOLERANCE:
        raise ConvertError(
            f"{what}: logits differ by {found:.2g} of the largest, where at most {TOLERANCE:g} is allowed; see what "
            "the weights are by convert inspect"
        )
    return f"{what}: logits differ by {found:.2g} of the largest; at most {TOLERANCE:g} is allowed"


def timm_logits(model: Model, source: str, images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b k"]:
    """Compute logits by the live timm, which reads the weights by itself and takes them with `strict=True`.

    Args:
        source: a file in any key format that timm converts, or a folder or hub id in timm's.

    Raises:
        ConvertError: timm has no such model, or does not take the weights.
        MissingExtraError: timm or PyTorch is not installed.
    """
    family, title = model.family, model.family.module.__name__
    if family.timm_options is None:
        raise ConvertError(f"timm has no {title}; leave --verify timm out")
    built = family.timm_options.items()
    if others := [f"{key} {model.options[key]!r}" for key, value in built if model.options[key] != value]:
        raise ConvertError(f"timm has no {title} with {' and '.join(others)}; leave --verify timm out")
    timm, torch = _load_timm()
    source = os.path.expanduser(source)
    source = f"local-dir:{source}" if os.path.isdir(source) else source
    try:
        if source.startswith(("local-dir:", *PREFIXES)):
            theirs = timm.create_model(source, pretrained=True)
        else:
            theirs = timm.create_model(model.name, num_classes=model.num_classes, **model_args(model))
            renamed = sys.modules[type(theirs).__module__].checkpoint_filter_fn  # timm's own, from other formats
            theirs.load_state_dict(renamed(timm.models.load_state_dict(source), theirs), strict=True)
    except Exception as error:  # files, dtypes and shapes that timm does not take raise types of all kinds
        raise ConvertError(f"timm {timm.__version__} does not take {source}: {' '.join(str(error).split())}") from error
    with torch.inference_mode():
        return theirs.eval().float()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


@functools.cache
def _load_timm() -> tuple[Any, Any]:
    with importing("torch", "--verify timm requires timm and PyTorch"):
        import timm
        import torch
    return timm, torch
