"""LocalVim: a plain backbone of Mamba blocks that scan the patches by rows, columns and windows.

Reference: Huang et al., LocalMamba: Visual State Space Model with Windowed Selective Scan, 2024;
github.com/hunto/LocalMamba at 75e5d1f0, classification/lib/models/local_vim.py and mamba/multi_mamba.py.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.joint_scan import ScanBranch, pad_to_longest, scan_jointly
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.local_scan import ChannelGate, LocalDirection, parse_directions
from mambaout_jax.models.layers.parameters import normal, uniform_within, zeros
from mambaout_jax.models.layers.patch_embed import PatchEmbed
from mambaout_jax.models.layers.vision_mamba import VisionMamba
from mambaout_jax.models.options import BLOCKS, COMMON, IMG_SIZE, OUT_INDICES, SCAN_IMPL

# Found by the authors' search, for a model of 20 blocks.
SEARCHED = (
    "h v_flip w7 w7_flip",
    "h_flip w2_flip w7 w7_flip",
    "h h_flip v w7",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h_flip v v_flip w7",
    "h_flip v v_flip w2_flip",
    "h h_flip v v_flip",
    "h h_flip v v_flip",
    "h v v_flip w2",
    "h v v_flip w2_flip",
    "h h_flip v_flip w7",
    "h_flip v v_flip w2",
    "h h_flip v v_flip",
    "h v w2 w2_flip",
    "v v_flip w2 w7",
    "h h_flip v w2",
    "h h_flip w2_flip w7",
    "v v_flip w2 w2_flip",
)
# Of every block, as in all models of the authors.
NUM_DIRECTIONS = 4

OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "img_size": IMG_SIZE,
        "patch_size": ConfigKey(int, "1..1024", 16, "side of a patch in pixels"),
        "embed_dim": ConfigKey(int, "4..65536", 192, "channels of a token"),
        "d_state": ConfigKey(int, "1..1024", 16, "states of the scan per channel"),
        "directions": ConfigKey(
            tuple[str, ...],
            None,
            SEARCHED,
            f"the {NUM_DIRECTIONS} scans of each block, as in 'h v_flip w7 w7_flip': rows (h), columns (v) or windows "
            "(w and their side), reversed with _flip",
        ),
        "class_token": ConfigKey(
            bool,
            None,
            False,
            "classify from a learned class token in the middle of the patches, not from their mean",
        ),
        "rope": ConfigKey(
            bool,
            None,
            True,
            "apply rotary position embeddings (RoPE) before every block; not with class_token",
        ),
        "rope_size": ConfigKey(
            int,
            "1..65536",
            224,
            "side in pixels of the square images that the tables of rotary position embeddings are computed for; for "
            "another img_size they are interpolated, as in the original code",
        ),
        "out_indices": OUT_INDICES,
        "scan_impl": SCAN_IMPL,
    }
)


def grid_of(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of patches of an image, the last of which may be incomplete."""
    return tuple(-(-side // patch_size) for side in img_size)


def rope_grid_of(rope_size: int, patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of the tables of the rotary position embedding."""
    return (rope_size // patch_size,) * 2


class LocalVim(VisionMamba):
    """LocalVim, with the options of `OPTIONS`; it has one block per entry of `directions`.

    Raises:
        ModelError: options do not fit together.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        d_state: int,
        directions: tuple[str, ...],
        class_token: bool,
        rope: bool,
        rope_size: int,
        out_indices: tuple[int, ...] | None,
        scan_impl: str,
        num_classes: int,
        in_chans: int,
        drop_path_rate: float,
        drop_rate: float,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        img_size = tuple(img_size)
        if rope and rope_size < patch_size:
            raise ModelError(f"rope_size is {rope_size}; expected at least patch_size {patch_size}")
        if class_token and rope:
            raise ModelError("class_token and rope are True; set one of them to False")
        if not directions:
            raise ModelError("directions is empty; expected the scans of at least one block")
        grid, dtype = grid_of(img_size, patch_size), jnp.dtype(dtype)
        super().__init__(
            [
                LocalMixer(
                    embed_dim,
                    scans,
                    d_state=d_state,
                    grid=grid,
                    depth=len(directions),
                    class_token=class_token,
                    scan_impl=scan_impl,
                    dtype=dtype,
                )
                for scans in parse_directions(directions)
            ],
            PatchEmbed(default_conv2d(in_chans, embed_dim, patch_size, stride=patch_size, dtype=dtype), pad=True),
            img_size=img_size,
            grid=grid,
            stride=patch_size,
            embed_dim=embed_dim,
            class_token="middle" if class_token else "none",
            class_token_initializer=zeros,
            rope_grid=rope_grid_of(rope_size, patch_size) if rope else None,
            out_indices=out_indices,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            dtype=dtype,
            scan_blocks=scan_blocks,
            remat=remat,
        )

    def grid_of(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image, the last of which may be incomplete."""
        return grid_of(img_size, self.stride)

    def _equal_blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for _, group in itertools.groupby(range(first, last), lambda index: self.layers[index].mixer.directions):
            start, *others = group
            yield start, start + len(others) + 1


class LocalMixer(nnx.Module):
    """A sequence mixer: out_proj(sum of scan_gate(scan(xz)) over the directions) with xz = in_proj(input).

    Each direction has its own parameters, and gates its output by SiLU(z). (In the reference, the A_log of all
    directions of a block share memory until the model is moved to a GPU.)

    Args:
        directions: the order of each scan.
        grid: rows and columns of patches.
        depth: number of blocks of the model; the initial values of out_proj are smaller in deep ones.
        class_token: the input has a class token in the middle, which stays there in the order of every scan.

    Raises:
        ModelError: the number of directions is wrong.
    """

    def __init__(
        self,
        dim: int,
        directions: Sequence[LocalDirection],
        *,
        d_state: int,
        grid: tuple[int, int],
        depth: int,
        class_token: bool,
        scan_impl: str,
        dtype: jnp.dtype,
    ):
        if len(directions) != NUM_DIRECTIONS:
            raise ModelError(f"a block has {len(directions)} directions; expected {NUM_DIRECTIONS}")
        inner = 2 * dim
        self.in_proj = Linear(dim, 2 * inner, bias=False, dtype=dtype)
        self.branches = nnx.List(
            ScanBranch(
                inner,
                math.ceil(dim / 16),
                d_state=d_state,
                x_proj_initializer=normal,
                dt_initializer=normal,
                dt_bias_initializer=zeros,
                dtype=dtype,
            )
            for _ in directions
        )
        self.scan_gate = ChannelGate(inner, dtype=dtype)
        # The reference draws all linear layers from N(0, 0.02^2), and then this one again.
        self.out_proj = Linear(inner, dim, bias=False, initializer=uniform_within((inner * depth) ** -0.5), dtype=dtype)
        self.directions = tuple(directions)
        self.grid = grid
        self.class_token = class_token
        self.scan_impl = scan_impl

    @property
    def scans(self) -> tuple[int, int, int]:
        """Return the number of directions, their channels and the states per channel."""
        return len(self.directions), *self.branches[0].A_log.shape

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        token, xz = self._cut(self.in_proj(x))
        xz = xz.reshape(xz.shape[0], *self.grid, xz.shape[2])
        sequences = pad_to_longest([self._insert(token, direction.sequence(xz)) for direction in self.directions])
        xs, zs = zip(*(jnp.split(sequence, 2, axis=2) for sequence in sequences), strict=True)
        scans = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        ys = scan_jointly(scans, zs, impl=self.scan_impl)
        maps = map(self._merge, self.directions, ys)
        return self.out_proj(sum(map(self.scan_gate, maps)))

    def _merge(self, direction, y):
        """Return the output of a scan in the order of the input."""
        token, y = self._cut(y[:, : direction.length(*self.grid) + self.class_token])
        y = direction.feature_map(y, *self.grid)
        return self._insert(token, y.reshape(y.shape[0], -1, y.shape[3]))

    def _cut(self, x):
        """Return the class token, None if there is none, and the sequence without it."""
        if not self.class_token:
            return None, x
        before, token, after = jnp.split(x, [self._position, self._position + 1], axis=1)
        return token, jnp.concatenate([before, after], axis=1)

    def _insert(self, token, x):
        if token is None:
            return x
        before, after = jnp.split(x, [self._position], axis=1)
        return jnp.concatenate([before, token, after], axis=1)

    @property
    def _position(self):
        return math.prod(self.grid) // 2
