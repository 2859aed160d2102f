"""MambaVision: convolutions in the first two stages, mixers with a selective scan and attention in the last two.

Reference: Hatamizadeh and Kautz, MambaVision: A Hybrid Mamba-Transformer Vision Backbone, CVPR 2025. The options that
the published models set have the names of the original code.
"""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.attention import Attention
from mambaout_jax.models.layers.blocks import run_blocks
from mambaout_jax.models.layers.conv import default_conv2d
from mambaout_jax.models.layers.drop import drop_path, dropout
from mambaout_jax.models.layers.linear import Linear, Mlp, activation
from mambaout_jax.models.layers.norm import BatchNorm, LayerNorm, LayerScale
from mambaout_jax.models.layers.windows import merge_windows, split_windows
from mambaout_jax.models.mambavision.mixer import TOKEN_MIXERS, MambaVisionMixer
from mambaout_jax.models.options import BLOCKS, COMMON, SCAN_IMPL, require

NUM_STAGES = 4
FIRST_WINDOWED = 2  # stages 0 and 1 have convolutions


class Stem(nnx.Module):
    """Two strided convolutions, from an image to a map of a quarter of its size."""

    def __init__(self, in_chans: int, in_dim: int, dim: int, *, dtype: jnp.dtype):
        self.conv1 = default_conv2d(in_chans, in_dim, 3, stride=2, padding=1, bias=False, dtype=dtype)
        self.norm1 = BatchNorm(in_dim, eps=1e-4)
        self.conv2 = default_conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False, dtype=dtype)
        self.norm2 = BatchNorm(dim, eps=1e-4)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b ho wo d"]:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


class ConvBlock(nnx.Module):
    """x + ls(norm2(conv2(act(norm1(conv1(x)))))) with the approximate GELU; ls is absent if `layer_scale` is None."""

    def __init__(self, dim: int, *, layer_scale: float | None, dtype: jnp.dtype):
        self.conv1 = default_conv2d(dim, dim, 3, padding=1, dtype=dtype)
        self.norm1 = BatchNorm(dim)
        self.conv2 = default_conv2d(dim, dim, 3, padding=1, dtype=dtype)
        self.norm2 = BatchNorm(dim)
        self.ls = None if layer_scale is None else LayerScale(dim, layer_scale)

    def __call__(
        self,
        x: Float[Array, "b h w d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b h w d"]:
        y = activation("gelu_tanh")(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return x + drop_path(y if self.ls is None else self.ls(y), drop_path_rate, key)


class WindowBlock(nnx.Module):
    """y = x + ls1(mixer(norm1(x))), then y + ls2(mlp(norm2(y))); drop path applies to each branch and window."""

    def __init__(
        self,
        dim: int,
        mixer: MambaVisionMixer | Attention,
        *,
        mlp_ratio: float,
        layer_scale: float | None,
        dtype: jnp.dtype,
    ):
        self.norm1 = LayerNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.norm2 = LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, ratio=mlp_ratio, dtype=dtype)
        self.ls1, self.ls2 = (None if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "b l d"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "b l d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        y = self.mixer(self.norm1(x))
        x = x + drop_path(y if self.ls1 is None else self.ls1(y), drop_path_rate, keys[0])
        y = self.mlp(self.norm2(x))
        return x + drop_path(y if self.ls2 is None else self.ls2(y), drop_path_rate, keys[1])


class Downsample(nnx.Module):
    """A strided convolution to twice the channels; the map is halved."""

    def __init__(self, dim: int, *, dtype: jnp.dtype):
        self.conv = default_conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b ho wo e"]:
        return self.conv(x)


class Stage(nnx.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first.

    Args:
        window: side of the windows that the blocks work on; None for the whole map.
    """

    def __init__(self, downsample: Downsample | None, blocks: Sequence[nnx.Module], *, window: int | None):
        self.downsample = downsample
        self.blocks = nnx.List(blocks)
        self.window = window


def attention_indices(depth: int, pattern: str, count: int | None) -> frozenset[int]:
    """Return the indices of the blocks with attention in a stage.

    Args:
        pattern: "last", "first" or "alternating", which starts with a mixer.
        count: number of blocks with attention; None for half, rounded down.
    """
    count = depth // 2 if count is None else min(count, depth)
    orders = {"last": range(depth - 1, -1, -1), "first": range(depth), "alternating": range(1, depth, 2)}
    return frozenset(orders[pattern][:count])


OPTIONS: Mapping[str, ConfigKey] = MappingProxyType(
    {
        **COMMON,
        **BLOCKS,
        "dim": ConfigKey(int, "2..8192", 80, "channels of the first stage; each further stage has twice as many"),
        "in_dim": ConfigKey(int, "1..8192", 32, "channels between the convolutions of the stem"),
        "depths": ConfigKey(tuple[int, ...], "1..1000", (1, 3, 8, 4), "blocks of each of the four stages"),
        "num_heads": ConfigKey(
            tuple[int, ...], "1..65536", (2, 4, 8, 16), "attention heads of each stage; the first two have no attention"
        ),
        "window_size": ConfigKey(
            tuple[int, ...],
            "1..16384",
            (8, 8, 14, 7),
            "side of the windows of each stage, in positions of its map; the first two have no windows",
        ),
        "mlp_ratio": ConfigKey(float, ">0..64", 4.0, "ratio of hidden channels of the MLPs to the stage's channels"),
        "layer_scale": ConfigKey(
            float | None,
            "0..",
            None,
            "initial value of LayerScale in the last two stages; None for no LayerScale",
            inference="presence",
        ),
        "layer_scale_conv": ConfigKey(
            float | None,
            "0..",
            None,
            "initial value of LayerScale in the first two stages; None for no LayerScale",
            inference="presence",
        ),
        "d_state": ConfigKey(int, "1..1024", 8, "states per channel of the scan"),
        "d_conv": ConfigKey(int, "1..127", 3, "kernel size of the convolutions before the scan, in tokens"),
        "token_mixer": ConfigKey(
            str,
            TOKEN_MIXERS,
            "concat",
            "how the branches x (convolution, SSM) and z (convolution) are combined. concat: concatenated; gated: "
            "x * z; conv: x * z, without the convolution of z; causal_conv: like conv, with a causal convolution in x, "
            "as in Mamba",
        ),
        "attention_pattern": ConfigKey(
            str,
            ("last", "first", "alternating"),
            "last",
            "which blocks of the last two stages have attention instead of the mixer; alternating starts with a mixer",
        ),
        "attention_blocks": ConfigKey(
            int | None,
            "0..1000",
            None,
            "number of blocks with attention in each of the last two stages, at most all; None for half, rounded down",
        ),
        "scan_impl": SCAN_IMPL,
    }
)


class MambaVision(nnx.Module):
    """MambaVision, with the options of `OPTIONS`. It accepts images of any size.

    Raises:
        ModelError: options do not fit together.
    """

    feature_strides = (4, 8, 16, 32)
    first_conv = ("stem", "conv1")
    classifier = ("head",)
    head_modules = ("norm", "head")  # what the feature maps do not use

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        dim: int,
        in_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        mlp_ratio: float,
        layer_scale: float | None,
        layer_scale_conv: float | None,
        d_state: int,
        d_conv: int,
        token_mixer: str,
        attention_pattern: str,
        attention_blocks: int | None,
        scan_impl: str,
        drop_path_rate: float,
        drop_rate: float,
        dtype: str,
        scan_blocks: bool,
        remat: str,
    ):
        _check_stages(depths=depths, num_heads=num_heads, window_size=window_size)
        if attention_pattern == "alternating" and attention_blocks is not None:
            raise ModelError(
                f"attention_blocks is {attention_blocks} and attention_pattern 'alternating'; set attention_blocks to "
                "None, or the pattern to 'last' or 'first'"
            )
        require.ratio("mlp_ratio", mlp_ratio, dim * 2**FIRST_WINDOWED)
        dtype = jnp.dtype(dtype)
        self.stem = Stem(in_chans, in_dim, dim, dtype=dtype)
        self.feature_channels = tuple(dim * 2**stage for stage in range(NUM_STAGES))
        self.stages = nnx.List([])
        for stage, width in enumerate(self.feature_channels):
            windowed = stage >= FIRST_WINDOWED
            attentive = attention_indices(depths[stage], attention_pattern, attention_blocks)
            if windowed and attentive and width % num_heads[stage]:
                raise ModelError(
                    f"num_heads[{stage}] is {num_heads[stage]}; expected a divisor of the width of that stage, {width}"
                )
            blocks: list[nnx.Module] = []
            for index in range(depths[stage]):
                if not windowed:
                    blocks.append(ConvBlock(width, layer_scale=layer_scale_conv, dtype=dtype))
                    continue
                if index in attentive:
                    mixer = Attention(width, num_heads[stage], dtype=dtype)
                else:
                    mixer = MambaVisionMixer(
                        width,
                        d_state=d_state,
                        d_conv=d_conv,
                        token_mixer=token_mixer,
                        scan_impl=scan_impl,
                        dtype=dtype,
                    )
                blocks.append(WindowBlock(width, mixer, mlp_ratio=mlp_ratio, layer_scale=layer_scale, dtype=dtype))
            downsample = Downsample(width // 2, dtype=dtype) if stage else None
            self.stages.append(Stage(downsample, blocks, window=window_size[stage] if windowed else None))
        self.norm = BatchNorm(self.feature_channels[-1])
        self.head = Linear(self.feature_channels[-1], num_classes, dtype=dtype)
        self.drop_rate = drop_rate
        self.drop_path_rates = tuple(np.linspace(0.0, drop_path_rate, sum(depths)).tolist())
        self.scan_blocks = scan_blocks
        self.remat = remat

    @property
    def no_decay(self) -> tuple[tuple[str | int, ...], ...]:
        """Return the paths of the parameters without weight decay, vectors aside: those of Mamba's SSM."""
        return tuple(
            ("stages", stage, "blocks", block, "mixer", "ssm", "A_log")
            for stage in range(FIRST_WINDOWED, NUM_STAGES)
            for block, module in enumerate(self.stages[stage].blocks)
            if isinstance(module.mixer, MambaVisionMixer)
        )

    @property
    def scans(self) -> tuple[tuple[int, ...], ...]:
        """Return the directions, channels and states of the scans of a block, for each map."""
        mixers = [[getattr(block, "mixer", None) for block in stage.blocks] for stage in self.stages]
        ssms = [next((each.ssm for each in stage if isinstance(each, MambaVisionMixer)), None) for stage in mixers]
        return tuple(() if ssm is None else (1, *ssm.A_log.shape) for ssm in ssms)

    def features(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> list[Array]:
        """Compute the map of every stage, before the downsampling to the next."""
        x = self.stem(images)
        maps, first = [], 0
        for stage in self.stages:
            if stage.downsample is not None:
                x = stage.downsample(x)
            _, h, w, _ = x.shape
            if stage.window is None:
                x = self._run(stage.blocks, x, key, first)
            else:
                x = self._run(stage.blocks, split_windows(x, stage.window), key, first)
                x = merge_windows(x, stage.window, h, w)
            first += len(stage.blocks)
            maps.append(x)
        return maps

    def embed(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b d"]:
        """Compute the input of the last layer."""
        x = self.norm(self.features(images, key)[-1]).astype(jnp.float32).mean((1, 2))
        return dropout(x, self.drop_rate, None if key is None else jax.random.fold_in(key, len(self.drop_path_rates)))

    def logits(self, images: Float[Array, "b h w i"], key: Key[Array, ""] | None) -> Float[Array, "b k"]:
        """Compute the logits."""
        return self.head(self.embed(images, key)).astype(jnp.float32)

    def _run(self, blocks, x, key, first):
        """Run the blocks of a stage; neighbors of one kind are scanned together."""
        for _, group in itertools.groupby(blocks, key=lambda block: type(getattr(block, "mixer", None))):
            same = list(group)
            rates = self.drop_path_rates[first : first + len(same)]
            x = run_blocks(same, x, key, rates, first=first, scan=self.scan_blocks, remat=self.remat)
            first += len(same)
        return x


def _check_stages(**options: Sequence[int]) -> None:
    for name, values in options.items():
        if len(values) != NUM_STAGES:
            raise ModelError(f"{name} is {tuple(values)}; expected {NUM_STAGES} integers, one per stage")
