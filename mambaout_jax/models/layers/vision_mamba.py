"""A plain backbone of Mamba blocks, as in Vim and LocalVim: patches, position embeddings and class tokens."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.blocks import chosen_blocks, run_blocks
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.norm import RMSNorm
from mambaout_jax.models.layers.parameters import Initializer, normal, parameter
from mambaout_jax.models.layers.position import check_image_size, resample_pos_embed
from mambaout_jax.models.layers.rotation import rotate_patches

CLASS_TOKENS = ("none", "first", "middle", "both", "random")
# The residual stream, float32, and the output of the last mixer.
State = tuple[Float[Array, "b l d"], Float[Array, "b l d"]]


class Block(nnx.Module):
    """One block: x + mixer(norm(x)). With `rope_grid`, rotary position embeddings are applied to x first.

    Args:
        grid: rows and columns of patches.
        rope_grid: rows and columns of the tables of the rotary position embedding; None for none.
        num_prefix_tokens: number of tokens before the patches, which are not rotated.
    """

    def __init__(
        self,
        dim: int,
        mixer: nnx.Module,
        *,
        grid: tuple[int, int],
        rope_grid: tuple[int, int] | None,
        num_prefix_tokens: int,
    ):
        self.norm = RMSNorm(dim)
        self.mixer = mixer
        self.grid = grid
        self.rope_grid = rope_grid
        self.num_prefix_tokens = num_prefix_tokens

    def __call__(
        self, state: State, key: Key[Array, ""] | None = None, drop_path_rate: float | Float[Array, ""] = 0.0
    ) -> State:
        x, _ = state
        if self.rope_grid is not None:
            prefix, patches = jnp.split(x, [self.num_prefix_tokens], axis=1)
            x = jnp.concatenate([prefix, rotate_patches(patches, self.grid, self.rope_grid)], axis=1)
        y = self.mixer(self.norm(x))
        return x + drop_path(y, drop_path_rate, key).astype(x.dtype), y


class VisionMamba(nnx.Module):
    """A sequence of Mamba blocks, followed by a norm and a linear layer on the class tokens or the mean of all tokens.

    Its feature maps are the outputs of the mixers of chosen blocks, without class tokens, as in the segmentation models
    of its references. It accepts images of `img_size` only. Subclasses define `grid_of(img_size)`, the rows
    and columns of patches of an image.

    Args:
        mixers: the mixer of each block; a mixer has `scans`, its number of directions, their channels and the states
            per channel.
        patch_embed: module from images to patches, row by row, with the convolution `proj`.
        grid: rows and columns of patches.
        stride: distance of patches in pixels.
        class_token: position of learned class tokens, one of `CLASS_TOKENS`. "random" draws the position of one class
            token, the same for the whole batch, with equal probability of every position before, between and after the
            patches; without a key it is "middle".
        rope_grid: rows and columns for which the tables of rotary position embeddings (RoPE) are computed, which are
            applied to the patches before every block; None for no RoPE.
        out_indices: blocks of the feature maps; None for the last one.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        mixers: Sequence[nnx.Module],
        patch_embed: nnx.Module,
        *,
        img_size: tuple[int, int],
        grid: tuple[int, int],
        stride: int,
        embed_dim: int,
        class_token: str,
        class_token_initializer: Initializer,
        rope_grid: tuple[int, int] | None,
        out_indices: tuple[int, ...] | None,
        num_classes: int,
        drop_path_rate: float,
        drop_rate: float,
        dtype: jnp.dtype,
        scan_blocks: bool,
        remat: str,
    ):
        depth = len(mixers)
        if rope_grid is not None and embed_dim % 4:
            raise ModelError(f"embed_dim is {embed_dim}; expected a multiple of 4 with rope")
        if rope_grid is not None and class_token not in ("none", "first"):
            raise ModelError(f"class_token is {class_token!r}; expected 'none' or 'first' with rope")
        self.patch_embed = patch_embed
        if class_token == "both":
            self.cls_token_head = parameter((1, 1, embed_dim), class_token_initializer)
            self.cls_token_tail = parameter((1, 1, embed_dim), class_token_initializer)
        elif class_token != "none":
            self.cls_token = parameter((1, 1, embed_dim), class_token_initializer)
        num_patches = grid[0] * grid[1]
        num_class_tokens = {"none": 0, "both": 2}.get(class_token, 1)
        self.pos_embed = parameter((1, num_patches + num_class_tokens, embed_dim), normal)
        self.layers = nnx.List(
            Block(embed_dim, mixer, grid=grid, rope_grid=rope_grid, num_prefix_tokens=num_class_tokens)
            for mixer in mixers
        )
        self.norm_f = RMSNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes, dtype=dtype)
        self.img_size = img_size
        self.grid = grid
        self.stride = stride
        self.class_token = class_token
        self.out_indices = chosen_blocks(out_indices, depth)
        self.drop_rate = drop_rate
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, depth).tolist())
        self.dtype = dtype
        self.scan_blocks = scan_blocks
        self.remat = remat

    # What the feature maps do not use.
    head_modules = ("norm_f", "head")

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
        return (self.stride,) * len(self.out_indices)

    @property
    def no_decay(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of the parameters without weight decay, vectors aside.

        A_log has weight decay: the original code marks it as exempt, but its optimizers do not read the mark.
        """
        tokens = {"none": (), "both": ("cls_token_head", "cls_token_tail")}.get(self.class_token, ("cls_token",))
        return tuple((name,) for name in ("pos_embed", *tokens))

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the directions, channels and states of the scans of a block, for each map."""
        return (self.layers[0].mixer.scans,) * len(self.out_indices)

    def resample_params(
        self, params: Mapping[tuple[str | int, ...], Any], img_size: tuple[int, int] | None = None
    ) -> dict[tuple[str | int, ...], Any]:
        """Return parameters for images of this model's size, from those for images of another size.

        The position embeddings of patches are resampled like `torch.nn.functional.interpolate(mode="bicubic")`, as in
        the references; those of class tokens are kept.

        Args:
            params: arrays by path: all parameters or some of them.
            img_size: (height, width) that they were trained at; None if unknown: then embeddings of another length
                are taken to be those of square images.
        """
        return resample_pos_embed(
            params,
            self.pos_embed.shape,
            self.grid,
            old_grid=None if img_size is None else self.grid_of(img_size),
            antialias=False,
            class_positions=self._class_positions,
        )

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the maps of the chosen blocks."""
        position = self._draw_position(key)
        state, maps = self._tokens(images, position), []
        for first, last in itertools.pairwise((-1, *self.out_indices)):
            state = self._run(state, key, first + 1, last + 1)
            patches = self._patches(state[1], position)
            maps.append(patches.reshape(patches.shape[0], *self.grid, patches.shape[2]))
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        """Compute the input of the last layer."""
        position = self._draw_position(key)
        x, _ = self._run(self._tokens(images, position), key, 0, len(self.layers))
        if position is not None:
            x = jax.lax.dynamic_slice_in_dim(x, position, 1, axis=1)
        elif self.class_token != "none":
            x = jnp.concatenate([x[:, i : i + 1] for i in self._class_positions(x.shape[1])], axis=1)
        x = self.norm_f(x).mean(1)
        return dropout(x, self.drop_rate, None if key is None else jax.random.fold_in(key, len(self.layers)))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head(self.embed(images, key)).astype(jnp.float32)

    def _draw_position(self, key) -> Int[Array, ""] | None:
        """Return a random position of the class token; None if its position is fixed, as it is without a key."""
        if self.class_token != "random" or key is None:
            return None
        # Blocks and dropout use the keys from 0 to the number of blocks.
        key = jax.random.fold_in(key, len(self.layers) + 1)
        return jax.random.randint(key, (), 0, self.pos_embed.shape[1])

    def _tokens(self, images, position=None) -> State:
        """Compute the input of the first block, with the class token at `position` if it is drawn."""
        check_image_size(images, self.img_size)
        x = self.patch_embed(images).astype(jnp.float32)

        def token(name):
            return jnp.broadcast_to(getattr(self, name)[...], (x.shape[0], 1, x.shape[2]))

        match self.class_token:
            case "both":
                x = jnp.concatenate([token("cls_token_head"), x, token("cls_token_tail")], axis=1)
            case "first":
                x = jnp.concatenate([token("cls_token"), x], axis=1)
            case "random" if position is not None:
                x = _insert(x, token("cls_token"), position)
            case "middle" | "random":
                before, after = jnp.split(x, [x.shape[1] // 2], axis=1)
                x = jnp.concatenate([before, token("cls_token"), after], axis=1)
        x = x + self.pos_embed[...]
        return x, x.astype(self.dtype)

    def _run(self, state: State, key, first: int, last: int) -> State:
        """Compute the blocks from `first` to before `last`; neighbors with equal options are scanned as one loop."""
        for start, stop in self._equal_blocks(first, last):
            state = run_blocks(
                self.layers[start:stop],
                state,
                key,
                self.drop_path_rates[start:stop],
                first=start,
                scan=self.scan_blocks,
                remat=self.remat,
            )
        return state

    def _equal_blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Return the ranges of neighboring blocks that differ only in their parameters."""
        yield first, last

    def _class_positions(self, length: int) -> tuple[int, ...]:
        """Return the fixed positions of class tokens in a sequence of all tokens."""
        match self.class_token:
            case "none":
                return ()
            case "first":
                return (0,)
            case "middle" | "random":
                return ((length - 1) // 2,)
            case _:
                return (0, length - 1)

    def _patches(self, x, position=None):
        """Return a sequence without class tokens; `position` is that of a drawn one."""
        if position is not None:
            return _remove(x, position)
        bounds = itertools.pairwise((-1, *self._class_positions(x.shape[1]), x.shape[1]))
        return jnp.concatenate([x[:, start + 1 : stop] for start, stop in bounds], axis=1)


# By `where`, which XLA fuses and partitions, unlike slices whose length is not known when the program is compiled.
def _insert(x: Float[Array, "b l d"], token: Float[Array, "b 1 d"], position: Int[Array, ""]) -> Float[Array, "b _ d"]:
    """Return a sequence, one longer, that has a token at a position known only at run time."""
    index = jnp.arange(x.shape[1] + 1)[None, :, None]
    before, after = jnp.concatenate([x, token], axis=1), jnp.concatenate([token, x], axis=1)
    return jnp.where(index < position, before, jnp.where(index == position, token, after))


def _remove(x: Float[Array, "b l d"], position: Int[Array, ""]) -> Float[Array, "b _ d"]:
    """Return a sequence without the token at a position known only at run time."""
    index = jnp.arange(x.shape[1] - 1)[None, :, None]
    return jnp.where(index < position, x[:, :-1], x[:, 1:])
