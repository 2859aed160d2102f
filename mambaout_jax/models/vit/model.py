"""The Vision Transformer, with full attention or causal attention as in a language model.

References: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; Touvron et al., Training data-efficient image
transformers, 2021; for causal attention, Yu and Wang, MambaOut, 2025, figure 3. The options and the parameter names are
those of timm's `vision_transformer.py`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.api import ParamPath
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.attention import Attention
from mambaout_jax.models.layers.blocks import chosen_blocks, run_blocks
from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear, Mlp
from mambaout_jax.models.layers.norm import LayerNorm
from mambaout_jax.models.layers.parameters import normal, normal_of, parameter
from mambaout_jax.models.layers.patch_embed import PatchEmbed
from mambaout_jax.models.layers.position import check_image_size, resample_pos_embed
from mambaout_jax.models.options import BLOCKS, COMMON, IMG_SIZE, OUT_INDICES, require


class Block(nnx.Module):
    """One block: y = x + attn(norm1(x)), then y + mlp(norm2(y)); drop path applies to each branch separately."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, causal: bool, dtype: jnp.dtype):
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, causal=causal, dtype=dtype)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, ratio=mlp_ratio, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b l d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attn(self.norm1(x)), drop_path_rate, keys[0])
        return x + drop_path(self.mlp(self.norm2(x)), drop_path_rate, keys[1])


# Names and defaults are those of timm 1.0.31, vision_transformer.py, except `attention` and `out_indices`.
OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "img_size": IMG_SIZE,
        "patch_size": ConfigKey(int, "1..1024", 16, "side of a patch in pixels; divides img_size"),
        "embed_dim": ConfigKey(int, "1..65536", 768, "channels of a token, a multiple of num_heads"),
        "depth": ConfigKey(int, "1..1000", 12, "number of blocks"),
        "num_heads": ConfigKey(int, "1..65536", 12, "attention heads"),
        "mlp_ratio": ConfigKey(float, ">0..64", 4.0, "ratio of hidden channels of the MLP to embed_dim"),
        "class_token": ConfigKey(bool, None, True, "prepend a learned class token to the patches"),
        "global_pool": ConfigKey(
            str, ("token", "avg"), "token", "input of the classifier: the class token, or the mean of the patches"
        ),
        "fc_norm": ConfigKey(
            bool | None, None, None, "normalize after pooling, not before; None for timm's rule: after avg only"
        ),
        "attention": ConfigKey(
            str, ("full", "causal"), "full", "causal: a token attends to itself and the tokens before it"
        ),
        "out_indices": OUT_INDICES,
    }
)


class VisionTransformer(nnx.Module):
    """The Vision Transformer, with the options of `OPTIONS`.

    Its feature maps are the outputs of the blocks in `out_indices`, before any norm and without the class token, as in
    timm's `forward_intermediates` by default. It accepts images of `img_size` only.

    Raises:
        ModelError: options do not fit together, or the logits could not depend on the image.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        class_token: bool,
        global_pool: str,
        fc_norm: bool | None,
        attention: str,
        out_indices: Sequence[int] | None,
        num_classes: int,
        in_chans: int,
        drop_path_rate: float,
        drop_rate: float,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        _check_tokens(class_token, global_pool, attention)
        require.ratio("mlp_ratio", mlp_ratio, embed_dim)
        self.img_size = tuple(img_size)
        if any(side % patch_size for side in self.img_size):
            raise ModelError(f"img_size is {img_size}; expected multiples of patch_size {patch_size}")
        if embed_dim % num_heads:
            raise ModelError(f"embed_dim is {embed_dim}; expected a multiple of num_heads {num_heads}")
        dtype = jnp.dtype(dtype)
        self.patch_embed = PatchEmbed(default_conv2d(in_chans, embed_dim, patch_size, stride=patch_size, dtype=dtype))
        self.cls_token = parameter((1, 1, embed_dim), normal_of(1e-6)) if class_token else None
        num_tokens = math.prod(side // patch_size for side in self.img_size) + class_token
        self.pos_embed = parameter((1, num_tokens, embed_dim), normal)
        self.blocks = nnx.List(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, causal=attention == "causal", dtype=dtype)
            for _ in range(depth)
        )
        norm_last = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = None if norm_last else LayerNorm(embed_dim)
        self.fc_norm = LayerNorm(embed_dim) if norm_last else None
        self.head = Linear(embed_dim, num_classes, dtype=dtype)
        self.patch_size = patch_size
        self.global_pool = global_pool
        self.out_indices = chosen_blocks(out_indices, depth)
        self.drop_rate = drop_rate
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, depth).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    # What the feature maps do not use.
    head_modules = ("norm", "fc_norm", "head")

    @property
    def first_conv(self) -> tuple[str, ...]:
        """Return the path of the first layer."""
        return ("patch_embed", "proj")

    @property
    def classifier(self) -> tuple[str, ...]:
        """Return the path of the last layer."""
        return ("head",)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Return the channels of each map."""
        return (self.pos_embed.shape[-1],) * len(self.out_indices)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Return the stride of each map, in pixels."""
        return (self.patch_size,) * len(self.out_indices)

    @property
    def no_decay(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of the parameters without weight decay, vectors aside."""
        return (("pos_embed",),) if self.cls_token is None else (("pos_embed",), ("cls_token",))

    def resample_params(
        self, params: Mapping[ParamPath, Any], img_size: tuple[int, int] | None = None
    ) -> dict[ParamPath, Any]:
        """Return parameters for images of this model's size, from those for images of another size.

        The position embeddings are resampled by timm's rule; all others are returned as they are.

        Args:
            params: arrays by path: all parameters or some of them.
            img_size: (height, width) that they were trained at; None if unknown: then embeddings of another length
                are taken to be those of square images.
        """
        return resample_pos_embed(
            params,
            self.pos_embed.shape,
            self._grid(self.img_size),
            old_grid=None if img_size is None else self._grid(img_size),
            antialias=True,
            class_positions=lambda _: () if self.cls_token is None else (0,),
        )

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the maps of the chosen blocks."""
        x, maps = self._tokens(images), []
        for first, last in itertools.pairwise((-1, *self.out_indices)):
            x = self._run_blocks(x, key, first + 1, last + 1)
            patches = self._patches(x)
            maps.append(patches.reshape(patches.shape[0], *self._grid(self.img_size), patches.shape[2]))
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        """Compute the input of the last layer."""
        x = self._run_blocks(self._tokens(images), key, 0, len(self.blocks))
        if self.norm is not None:
            x = self.norm(x)
        x = x[:, 0] if self.global_pool == "token" else self._patches(x).astype(jnp.float32).mean(1)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        return dropout(x, self.drop_rate, None if key is None else jax.random.fold_in(key, len(self.blocks)))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head(self.embed(images, key)).astype(jnp.float32)

    def _tokens(self, images):
        """Compute the input of the first block."""
        check_image_size(images, self.img_size)
        x = self.patch_embed(images)
        if self.cls_token is not None:
            first = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([first, x], axis=1)
        return x + self.pos_embed.astype(x.dtype)

    def _run_blocks(self, x, key, first, last):
        """Compute the blocks from `first` to before `last`."""
        rates = self.drop_path_rates[first:last]
        return run_blocks(self.blocks[first:last], x, key, rates, first=first, scan=self.scan_blocks, remat=self.remat)

    def _grid(self, img_size):
        return tuple(side // self.patch_size for side in img_size)

    def _patches(self, x):
        return x if self.cls_token is None else x[:, 1:]


def _check_tokens(class_token, global_pool, attention):
    if global_pool == "token" and not class_token:
        raise ModelError("global_pool is 'token' and class_token is False; set global_pool='avg'")
    if global_pool == "token" and attention == "causal":
        raise ModelError(
            "attention is 'causal' and global_pool is 'token'; the class token comes first and attends to itself only, "
            "so that the logits would ignore the image: set global_pool='avg'"
        )
