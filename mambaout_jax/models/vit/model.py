"""The Vision Transformer, with attention that sees all tokens or, as in a causal language model, those before alone.

References: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; Touvron et al., Training data-efficient image
transformers, 2021; for causal attention, Yu and Wang, MambaOut, 2025, figure 3. The options and the parameter names are
those of timm's `vision_transformer.py`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.basic import (
    LayerNorm,
    Linear,
    activation,
    drop_path,
    dropout,
    normal,
    parameter,
    per_channel,
    saveable,
    uniform_within,
)
from mambaout_jax.models.layers.blocks import REMAT, run_blocks
from mambaout_jax.models.options import DTYPES, require_choice, require_counts, require_rates, require_ratio
from mambaout_jax.ops import matmul


def _almost_zero(noise: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1e-6 * noise


class PatchConv(nnx.Module):
    """Convolve p x p with stride p, which is one product of patches and `weight` (p, p, in, out)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, *, dtype: jnp.dtype):
        # PyTorch's own start of a convolution, which timm leaves as it is.
        initializer = uniform_within(1 / math.sqrt(patch_size**2 * in_chans))
        self.weight = parameter((patch_size, patch_size, in_chans, dim), initializer)
        self.bias = parameter((dim,), initializer)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b l d"]:
        (b, h, w, i), (p, _, _, d) = x.shape, self.weight.shape
        patches = x.astype(self.dtype).reshape(b, h // p, p, w // p, p, i).swapaxes(2, 3)
        weight = self.weight.astype(self.dtype).reshape(-1, d)
        tokens = matmul(patches.reshape(b, (h // p) * (w // p), p * p * i), weight)
        return tokens + per_channel(self.bias, tokens)


class PatchEmbed(nnx.Module):
    """Make a token of each patch of the image, row by row."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, *, dtype: jnp.dtype):
        self.proj = PatchConv(in_chans, dim, patch_size, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b l d"]:
        return self.proj(x)


class Attention(nnx.Module):
    """Mix tokens by softmax(q k^T / sqrt(d / heads)) v in each head; `qkv` holds the three, then heads, packed."""

    def __init__(self, dim: int, num_heads: int, *, causal: bool, dtype: jnp.dtype):
        self.qkv = Linear(dim, 3 * dim, dtype=dtype)
        self.proj = Linear(dim, dim, dtype=dtype)
        self.num_heads = num_heads
        self.causal = causal

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        d = x.shape[-1]
        heads = (part.reshape(*x.shape[:2], self.num_heads, -1) for part in self.qkv.apply_split(x, [d, 2 * d]))
        # The products' sums and the softmax are float32 whatever x is.
        y = jax.nn.dot_product_attention(*heads, is_causal=self.causal)
        return self.proj(saveable(y.reshape(x.shape)))


class Mlp(nnx.Module):
    """Widen each token, apply GELU, and narrow it again."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype):
        self.fc1 = Linear(dim, hidden, dtype=dtype)
        self.fc2 = Linear(hidden, dim, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.fc2(activation("gelu")(self.fc1(x)))


class Block(nnx.Module):
    """Compute y = x + attn(norm1(x)), then y + mlp(norm2(y)); each branch is dropped by itself."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, causal: bool, dtype: jnp.dtype):
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, causal=causal, dtype=dtype)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b l d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attn(self.norm1(x)), drop_path_rate, keys[0])
        return x + drop_path(self.mlp(self.norm2(x)), drop_path_rate, keys[1])


class VisionTransformer(nnx.Module):
    """Build a Vision Transformer from timm's options.

    Its one feature map holds the patches as the last block leaves them, before any norm and without the class token:
    what timm's `forward_intermediates` gives by default.

    Args:
        img_size: side or (height, width) of the images, a multiple of patch_size; no other size is taken.
        patch_size: side of a patch, in pixels.
        embed_dim: channels of a token, a multiple of num_heads.
        mlp_ratio: hidden channels over embed_dim.
        class_token: put a learned token before the patches.
        global_pool: what is classified, "token" (the class token) or "avg" (the mean of the patches).
        fc_norm: normalise after pooling, not before; None for what timm does, after "avg" alone.
        attention: "full", or "causal": a token sees itself and those before it.
        num_classes: width of the logits, at least 1.
        in_chans: channels of the input.
        drop_path_rate: of the last block's branches; rises linearly from 0 over all blocks.
        drop_rate: dropout before the classifier.
        dtype: "float32" or "bfloat16", for matrix products; the softmax is float32.
        scan_blocks: compile one block, and run it as often as there are blocks.
        remat: what the backward pass recomputes of a block instead of storing it: "none", "save_matmuls" (all but
            matrix products and attention outputs) or "full".

    Raises:
        ModelError: an option is out of its range, or the logits could not depend on the image.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        global_pool: str = "token",
        fc_norm: bool | None = None,
        attention: str = "full",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        dtype: str = "float32",
        scan_blocks: bool = False,
        remat: str = "none",
    ):
        require_counts(
            num_classes=num_classes,
            in_chans=in_chans,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
        )
        require_ratio("mlp_ratio", mlp_ratio, embed_dim)
        require_rates(drop_path_rate=drop_path_rate, drop_rate=drop_rate)
        require_choice("class_token", class_token, (True, False))
        require_choice("global_pool", global_pool, ("token", "avg"))
        require_choice("fc_norm", fc_norm, (None, True, False))
        require_choice("attention", attention, ("full", "causal"))
        require_choice("dtype", dtype, DTYPES)
        require_choice("scan_blocks", scan_blocks, (False, True))
        require_choice("remat", remat, tuple(REMAT))
        _check_tokens(class_token, global_pool, attention)
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side % patch_size for side in self.img_size):
            raise ModelError(f"img_size is {img_size}; multiples of patch_size {patch_size} are expected")
        if embed_dim % num_heads:
            raise ModelError(f"embed_dim {embed_dim} cannot be shared by num_heads {num_heads}; a multiple is expected")
        dtype = jnp.dtype(dtype)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, dtype=dtype)
        self.cls_token = parameter((1, 1, embed_dim), _almost_zero) if class_token else None
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
        self.drop_rate = drop_rate
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, depth).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    @property
    def first_conv(self) -> tuple[str, ...]:
        """Give the path of the layer that sees the image."""
        return ("patch_embed", "proj")

    @property
    def classifier(self) -> tuple[str, ...]:
        """Give the path of the layer that makes logits of features."""
        return ("head",)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Give the channels of the one map."""
        return (self.pos_embed.shape[-1],)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Give the stride of the one map."""
        return (self.patch_size,)

    @property
    def no_decay(self) -> tuple[tuple[str, ...], ...]:
        """Give the paths that weight decay leaves alone beside the vectors."""
        return (("pos_embed",),) if self.cls_token is None else (("pos_embed",), ("cls_token",))

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the one map."""
        patches = self._patches(self._tokens(images, key))
        rows, columns = (side // self.patch_size for side in self.img_size)
        return [patches.reshape(patches.shape[0], rows, columns, patches.shape[2])]

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Classify."""
        x = self._tokens(images, key)
        if self.norm is not None:
            x = self.norm(x)
        x = x[:, 0] if self.global_pool == "token" else self._patches(x).astype(jnp.float32).mean(1)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        x = dropout(x, self.drop_rate, None if key is None else jax.random.fold_in(key, len(self.blocks)))
        return self.head(x).astype(jnp.float32)

    def _tokens(self, images, key):
        if images.shape[1:3] != self.img_size:
            raise ModelError(
                f"images are {images.shape[1]}x{images.shape[2]}; {self.img_size[0]}x{self.img_size[1]} is expected, "
                "the img_size that the model was created for and has position embeddings of"
            )
        x = self.patch_embed(images)
        if self.cls_token is not None:
            first = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.pos_embed.astype(x.dtype)
        return run_blocks(self.blocks, x, key, self.drop_path_rates, first=0, scan=self.scan_blocks, remat=self.remat)

    def _patches(self, x):
        return x if self.cls_token is None else x[:, 1:]


def _check_tokens(class_token, global_pool, attention):
    if global_pool == "token" and not class_token:
        raise ModelError("global_pool is 'token' and class_token is False; there is none: set global_pool='avg'")
    if global_pool == "token" and attention == "causal":
        raise ModelError(
            "attention is 'causal' and global_pool is 'token'; the class token comes first and sees itself alone, so "
            "that the logits would ignore the image: set global_pool='avg'"
        )
