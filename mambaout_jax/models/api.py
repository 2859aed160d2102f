"""A model as plain functions of nested dicts; flax is not used outside this package."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family

Variables = dict[str, Any]
Output = Literal["logits", "features"]

MIN_SIZE = 32


def cpu_compiler_options() -> dict[str, str] | None:
    """Return the XLA options for compiling a model's forward pass, as `jax.jit(compiler_options=)` takes them.

    By default the CPU backend cuts the weights of all layers into parts (see `Linear.apply_split`) before the first one
    runs, which needs memory for a second copy of the weights. A step of training takes as long with it.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class FeatureInfo(NamedTuple):
    """One feature map: its channels and how many input pixels one of its pixels spans."""

    channels: int
    stride: int


class InputSpec(NamedTuple):
    """How images have to be prepared: statistics of RGB in [0, 1], size in pixels, evaluation crop."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str


class Model:
    """The structure of a network; its numbers are in the `variables` that every method takes.

    `variables` is {"params": nested dict, "batch_stats": nested dict}; dict paths are timm's state-dict names with
    integers for the positions in a list. A model is stochastic if and only if it is given a key.
    """

    def __init__(
        self, module: nnx.Module, *, name: str, family: Family, input_spec: InputSpec, options: Mapping[str, Any]
    ):
        self.name = name
        self.family = family
        self.input_spec = input_spec
        # Every option of the family with its value.
        self.options = MappingProxyType(dict(options))
        self.num_classes: int = options["num_classes"]
        self.in_chans: int = options["in_chans"]
        self.feature_info = tuple(map(FeatureInfo, module.feature_channels, module.feature_strides))
        # Path of the first layer, which alone depends on the input's channels, and of the last, on the classes.
        self.first_conv: tuple[str | int, ...] = tuple(module.first_conv)
        self.classifier: tuple[str | int, ...] = tuple(module.classifier)
        self.no_decay: frozenset[tuple[str | int, ...]] = frozenset(getattr(module, "no_decay", ()))
        self._graphdef, self._params, self._batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    @property
    def num_params(self) -> int:
        """Count the parameters, without drawing them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._params))

    @property
    def shapes(self) -> Variables:
        """Variables of `jax.ShapeDtypeStruct`, without tracing `init`."""
        return {"params": state_shapes(self._params), "batch_stats": state_shapes(self._batch_stats)}

    def init(self, key: Key[Array, ""]) -> Variables:
        """Draw all variables."""
        return jax.jit(self._draw)(key)

    def _draw(self, key: Key[Array, ""]) -> Variables:
        return {"params": draw_state(self._params, key), "batch_stats": draw_state(self._batch_stats, key)}

    def apply(
        self, variables: Variables, images: Float[Array, "b h w i"], output: Output = "logits"
    ) -> Float[Array, "b k"] | list[Float[Array, "..."]]:
        """Compute logits, or the list of stage maps, for inference.

        Args:
            images: normalised by `input_spec`, at least 32 px high and wide.

        Raises:
            ModelError: the images have another rank or channel count or are too small, or `output` is unknown.
        """
        return self._run(self._merge(variables), images, None, output)

    def apply_train(
        self,
        variables: Variables,
        images: Float[Array, "b h w i"],
        *,
        key: Key[Array, ""] | None = None,
        update_stats: bool = True,
        output: Output = "logits",
    ) -> tuple[Any, Variables]:
        """Compute what `apply` does, with dropout and stochastic depth drawn from `key`; also the batch statistics.

        Args:
            update_stats: return statistics moved by this batch, instead of those that came in.
        """
        module = self._merge(variables)
        result = self._run(module, images, key, output)
        if not update_stats:
            return result, variables["batch_stats"]
        return result, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def _merge(self, variables: Variables) -> nnx.Module:
        return nnx.merge(self._graphdef, variables["params"], variables["batch_stats"])

    def _run(self, module: nnx.Module, images: Array, key: Key[Array, ""] | None, output: Output) -> Any:
        if output not in ("logits", "features"):
            raise ModelError(f"output is {output!r}; 'logits' or 'features' is expected")
        if images.ndim != 4 or images.shape[3] != self.in_chans:
            raise ModelError(f"images have shape {images.shape}; (batch, height, width, {self.in_chans}) is expected")
        if min(images.shape[1:3]) < MIN_SIZE:
            raise ModelError(f"images are {images.shape[1]}x{images.shape[2]}; at least {MIN_SIZE} px is expected")
        return module.features(images, key) if output == "features" else module.logits(images, key)


def state_shapes(state: Any) -> Variables:
    """Return the shapes that a state of nnx describes, as a nested dict."""
    flat = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def draw_state(state: Any, key: Key[Array, ""]) -> Variables:
    """Draw what a state of nnx describes, as a nested dict."""
    flat = dict(nnx.to_flat_state(state))
    noise = jax.random.normal(key, (sum(variable.size for variable in flat.values()),), jnp.float32)
    drawn, start = {}, 0
    for path, variable in flat.items():
        drawn[path] = variable.initializer(noise[start : start + variable.size].reshape(variable.shape))
        start += variable.size
    return nnx.traversals.unflatten_mapping(drawn)
