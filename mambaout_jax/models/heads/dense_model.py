"""What models for dense prediction share: a backbone, a norm for each of its maps, and strides that double."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.heads.pyramid import FeaturePyramid
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.words import count

ParamPath = tuple[str | int, ...]

NUM_MAPS = 4


class DenseModel(nnx.Module):
    """The base of models on the four maps of a backbone.

    A backbone with one stride gets a `FeaturePyramid`.

    Args:
        eps: epsilon of the LayerNorm of each map.

    Raises:
        ModelError: the backbone does not have four feature maps, or all have a stride that is not a multiple of 4.
    """

    def __init__(self, backbone: nnx.Module, *, eps: float, dtype: jnp.dtype):
        widths, strides = backbone.feature_channels, backbone.feature_strides
        if len(widths) != NUM_MAPS:
            raise ModelError(
                f"the backbone {type(backbone).__name__} has {count(len(widths), 'feature map')}; expected {NUM_MAPS}, "
                "one for each entry of depths or out_indices"
            )
        self.backbone = backbone
        self.norms = nnx.List(LayerNorm(width, eps=eps) for width in widths)
        self.pyramid = FeaturePyramid(widths[0], dtype=dtype) if len(set(strides)) == 1 else None
        self.feature_channels = tuple(widths)
        self.feature_strides = tuple(strides) if self.pyramid is None else _pyramid_strides(strides[0])

    @property
    def first_conv(self) -> ParamPath:
        """Return the path of the first layer."""
        return ("backbone", *self.backbone.first_conv)

    @property
    def no_decay(self) -> tuple[ParamPath, ...]:
        """Return the paths of the backbone's parameters without weight decay, vectors aside."""
        return tuple(("backbone", *path) for path in getattr(self.backbone, "no_decay", ()))

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the scans of the backbone's blocks."""
        return getattr(self.backbone, "scans", ((),) * NUM_MAPS)

    @property
    def resample_params(self) -> Callable[..., dict[ParamPath, Any]] | None:
        """Return the function that adapts parameters to another image size; None if none depend on it."""
        inner = getattr(self.backbone, "resample_params", None)
        if inner is None:
            return None

        def resample(params: Mapping[ParamPath, Any], img_size: tuple[int, int] | None = None) -> dict[ParamPath, Any]:
            of_backbone = {path[1:]: value for path, value in params.items() if path[0] == "backbone"}
            changed = {("backbone", *path): value for path, value in inner(of_backbone, img_size).items()}
            return {**params, **changed}

        return resample

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the four maps that the heads read."""
        maps = self.backbone.features(images, key)
        maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return maps if self.pyramid is None else self.pyramid(maps)


def _pyramid_strides(stride: int) -> tuple[int, ...]:
    if stride % 4:
        raise ModelError(
            f"the stride of the patches is {stride} px; expected a multiple of 4: set patch_size or stride"
        )
    return stride // 4, stride // 2, stride, 2 * stride
