"""Verification of converted weights: equal logits for equal images, in float32 at the highest precision."""

import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mambaout_jax.extras import importing
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import Model, cpu_compiler_options, create_model
from mambaout_jax.weights.errors import WeightsError
from mambaout_jax.weights.hub import PREFIXES
from mambaout_jax.weights.options import model_args
from mambaout_jax.words import listed

# Maximum difference of logits relative to the largest logit. Summing some thousand float32 products in another order
# changes logits by about 1e-6, a swapped or transposed layer by more than 1e-2.
TOLERANCE = 1e-4


class LogitsCheck:
    """A comparison of logits, or of the detections of a detector, with those of a reference.

    Args:
        reference: variables of the model.
        images: normalized images.
    """

    def __init__(self, model: Model, reference: dict[str, Any], images: Float[np.ndarray, "b h w c"]):
        self._model = model
        self._images = images
        exact = create_model(model.name, **{"img_size": model.input_spec.size, **model.options, "dtype": "float32"})
        shapes = (
            jax.eval_shape(model.init, jax.random.key(0)),
            jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32),
        )
        # By default, TPUs compute float32 products in bfloat16 passes.
        with jax.default_matmul_precision("highest"):
            self._apply = jax.jit(exact.apply, compiler_options=cpu_compiler_options()).lower(*shapes).compile()
        self._expected = self._logits(reference)

    def _logits(self, variables: dict[str, Any]) -> np.ndarray:
        # One image at a time takes the least memory and is not slower.
        outputs = (jax.tree.leaves(self._apply(variables, image[None])) for image in self._images)
        return np.stack([np.concatenate([np.ravel(x).astype(np.float32) for x in leaves]) for leaves in outputs])

    def difference(self, variables: dict[str, Any]) -> float:
        """Compute the maximum difference relative to the largest logit; infinite if a logit is not finite."""
        return difference(self._logits(variables), self._expected)

    def require(self, what: str, variables: dict[str, Any]) -> str:
        """Check that weights agree with the reference, and return a sentence with the difference.

        Args:
            what: description of the weights, the start of the sentence.

        Raises:
            WeightsError: the difference exceeds `TOLERANCE`.
        """
        return _check_difference(what, self.difference(variables))

    def require_timm(self, source: str) -> str:
        """Check that timm, which reads `source` itself, agrees with the reference, and return a sentence.

        Raises:
            WeightsError: the difference exceeds `TOLERANCE`, or timm cannot load the weights.
            MissingExtraError: timm or PyTorch is not installed.
        """
        logits = timm_logits(self._model, source, self._images)
        return _check_difference(f"timm {_load_timm()[0].__version__}", difference(logits, self._expected))


def random_images(model: Model, count: int) -> Float[np.ndarray, "b h w c"]:
    """Draw random normalized images, the same in every call."""
    shape = (count, *model.input_spec.size, model.in_chans)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def difference(logits: Float[np.ndarray, "b k"], expected: Float[np.ndarray, "b k"]) -> float:
    """Compute the maximum difference relative to the largest logit; infinite if logits are missing or not finite."""
    if logits.shape != expected.shape or not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        return float("inf")
    logits, expected = logits.astype(np.float32), expected.astype(np.float32)  # booleans and integers, too
    return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _check_difference(what: str, found: float) -> str:
    if not found <= TOLERANCE:
        raise WeightsError(
            f"{what}: the logits differ by {found:.2g} of the largest logit, where at most {TOLERANCE:g} is allowed; "
            "check the weights with convert inspect"
        )
    if found == 0:
        return f"{what}: the logits are identical"
    return f"{what}: the logits agree, with a largest difference of {found:.2g} of the largest logit"


def timm_logits(model: Model, source: str, images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b k"]:
    """Compute logits with timm, which reads the weights itself and loads them with `strict=True`.

    Args:
        source: a file in any key format that timm converts, or a folder or hub id in timm's format.

    Raises:
        WeightsError: timm does not have the model or cannot load the weights.
        MissingExtraError: timm or PyTorch is not installed.
    """
    check_timm(model)
    timm, torch = _load_timm()
    source = os.path.expanduser(source)
    source = f"local-dir:{source}" if os.path.isdir(source) else source
    try:
        if source.startswith(("local-dir:", *PREFIXES)):
            timm_model = timm.create_model(source, pretrained=True)
        else:
            timm_model = timm.create_model(model.name, num_classes=model.num_classes, **model_args(model))
            convert = sys.modules[type(timm_model).__module__].checkpoint_filter_fn  # from other key formats to timm's
            timm_model.load_state_dict(convert(timm.models.load_state_dict(source), timm_model), strict=True)
    except Exception as error:  # timm raises many types for invalid files, dtypes and shapes
        raise_machine_fault(error, source)
        raise WeightsError(f"timm {timm.__version__} cannot load {source}: {' '.join(str(error).split())}") from error
    with torch.inference_mode():
        return timm_model.eval().float()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def check_timm(model: Model) -> None:
    """Check that timm is installed and has a model, before the work that `LogitsCheck.require_timm` verifies.

    Raises:
        WeightsError: timm does not have the model.
        MissingExtraError: timm or PyTorch is not installed.
    """
    family, title = model.family, model.family.module.__name__
    if family.timm_options is None:
        raise WeightsError(f"timm has no {title}; omit --verify timm")
    built = family.timm_options.items()
    if others := [f"{key} {model.options[key]!r}" for key, value in built if model.options[key] != value]:
        raise WeightsError(f"timm has no {title} with {listed(others)}; omit --verify timm")
    _load_timm()


@functools.cache
def _load_timm() -> tuple[Any, Any]:
    with importing("torch", "--verify timm requires timm and PyTorch"):
        import timm
        import torch
    return timm, torch
