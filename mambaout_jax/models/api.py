"""Modules and models as plain functions of nested dicts. Code outside of models/ does not use flax."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, UInt8

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.family import Family, head_modules
from mambaout_jax.models.layers.parameters import init_state, state_shapes
from mambaout_jax.models.options import MIN_SIZE
from mambaout_jax.ops import denormalize_images, normalize_images, use_kernels
from mambaout_jax.ops.sharding import spec_of, with_auto_axes

if TYPE_CHECKING:
    from mambaout_jax.models.summary import Summary

Variables = dict[str, Any]
ParamPath = tuple[str | int, ...]
Output = Literal["logits", "features", "embedding"]
OUTPUTS: tuple[Output, ...] = ("logits", "features", "embedding")


def cpu_compiler_options() -> dict[str, str] | None:
    """Return `compiler_options` of `jax.jit` for a model's forward pass on this backend.

    By default, XLA's CPU backend splits the weights of all layers (see `Linear.apply_split`) before the first layer
    runs, which takes the memory of a second copy of the weights. A training step is equally fast with and without the
    options.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class FeatureInfo(NamedTuple):
    """Channels of a feature map, and its stride in input pixels."""

    channels: int
    stride: int


class ScanInfo(NamedTuple):
    """The selective scans of a block: number of directions, channels of each, and states per channel."""

    directions: int = 0
    channels: int = 0
    d_state: int = 0


class InputSpec(NamedTuple):
    """Preprocessing of images: mean and std for values in [0, 1], (height, width) in pixels, evaluation crop."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str

    def normalize(self, images: Float[Array, "b h w c"] | UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalize pixels in 0..255."""
        return normalize_images(images, self.mean, self.std)

    def denormalize(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the pixels in 0..255 of normalized images."""
        return denormalize_images(images, self.mean, self.std)


class Functional:
    """A module as functions of its `variables`, {"params": nested dict, "batch_stats": nested dict}.

    Paths in the dicts are the attribute names of the module, with integers as list indices. "batch_stats" may be absent
    for a module without running statistics.
    """

    def __init__(self, module: nnx.Module, *, name: str | None = None):
        self.name = type(module).__name__ if name is None else name
        # Paths of parameters without weight decay, in addition to all vectors.
        self.no_decay: frozenset[ParamPath] = frozenset(getattr(module, "no_decay", ()))
        self._graphdef, self._params, self._batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        # Jitted once, so that repeated calls outside of jit are not traced again.
        self._call = jax.jit(
            lambda method, variables, args: self._compute(
                lambda module, *args: getattr(module, method)(*args), variables, *args
            )[0],
            static_argnums=0,
        )

    @property
    def num_params(self) -> int:
        """Return the number of parameters, without initializing them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._params))

    @property
    def shapes(self) -> Variables:
        """Return the variables as `jax.ShapeDtypeStruct`s, without tracing `init`."""
        return {"params": state_shapes(self._params), "batch_stats": state_shapes(self._batch_stats)}

    def init(self, key: Key[Array, ""]) -> Variables:
        """Initialize all variables."""
        return jax.jit(self._init)(key)

    def apply(self, variables: Variables, *args: Any, method: str = "__call__") -> Any:
        """Apply a method of the module, for inference.

        Args:
            args: arguments of the method, arrays in any pytree. On a mesh, results are split by rows like the first
                array.
            method: name of the method.

        Raises:
            ModelError: the variables have another structure or other shapes than those of `init`, or what the method
                raises.
            AttributeError: the module does not have the method.
        """
        return self._call(method, variables, args)

    def _init(self, key: Key[Array, ""]) -> Variables:
        return {"params": init_state(self._params, key), "batch_stats": init_state(self._batch_stats, key)}

    @cached_property
    def _expected(self) -> Variables:
        return self.shapes

    def _check(self, variables: Variables) -> Variables:
        """Check the structure and the shapes of variables, and return them with "batch_stats".

        Raises:
            ModelError: keys are missing or unknown, or a shape is wrong.
        """
        given = variables
        if isinstance(variables, Mapping) and not self._expected["batch_stats"]:
            given = {"batch_stats": {}, **variables}
        if fault := _find_mismatch(given, self._expected, "variables"):
            raise ModelError(f"{fault}; expected variables as {self.name}.init(key) returns them")
        return given

    def _compute(self, function: Callable[..., Any], variables: Variables, *args: Any) -> tuple[Any, Variables]:
        """Compute `function(module, *args)` and the batch statistics of the module after it, on any mesh.

        Explicit axes are Auto inside. The first axis of results is split like that of the first array of `args`;
        scalars are replicated.
        """
        variables = self._check(variables)

        def run(variables: Variables, *args: Any) -> tuple[Any, Variables]:
            module = self._merge(variables)
            return function(module, *args), _statistics(module)

        of_statistics = jax.tree.map(spec_of, _statistics(self._merge(variables)))

        def compute(of_results: Any) -> tuple[Any, Variables]:
            return with_auto_axes(run, variables, *args, out=(of_results, of_statistics))

        specs = [spec_of(leaf) for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
        rows = specs[0][0] if specs and specs[0] else None
        if rows is None:
            return compute(PartitionSpec())
        results, _ = jax.eval_shape(lambda: compute(PartitionSpec()))
        return compute(jax.tree.map(lambda result: PartitionSpec(rows) if result.ndim else PartitionSpec(), results))

    def _merge(self, variables: Variables) -> nnx.Module:
        return nnx.merge(self._graphdef, variables["params"], variables["batch_stats"])


def _statistics(module: nnx.Module) -> Variables:
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def _find_mismatch(given: Any, expected: Any, name: str) -> str:
    """Return the first difference of nested dicts from the expected shapes, in words; empty if there is none."""
    if not isinstance(expected, Mapping):
        shape = getattr(given, "shape", None)
        if shape is None:
            return f"{name} has type {type(given).__name__}, not an array"
        return "" if shape == expected.shape else f"{name} has shape {shape}, not {expected.shape}"
    if not isinstance(given, Mapping):
        return f"{name} has type {type(given).__name__}, not a dict"
    for word, keys in (
        ("lacks the key", [key for key in expected if key not in given]),
        ("has the unknown key", [key for key in given if key not in expected]),
    ):
        if keys:
            return f"{name} {word}{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"
    children = (_find_mismatch(given[key], value, f"{name}[{key!r}]") for key, value in expected.items())
    return next(filter(None, children), "")


class Model(Functional):
    """A network as functions of its `variables`, whose paths follow timm's state-dict names where timm has the family.

    A model is stochastic if and only if a key is passed. It is immutable: a copy is the model itself, and pickling
    stores its name and its options.
    """

    def __init__(
        self,
        module: nnx.Module,
        *,
        name: str,
        family: Family,
        input_spec: InputSpec,
        options: Mapping[str, Any],
        kernels: str = "auto",
    ):
        super().__init__(module, name=name)
        self.family = family
        self.input_spec = input_spec
        self.options = MappingProxyType(dict(options))
        self.kernels = kernels
        self.num_classes: int = options["num_classes"]
        self.in_chans: int = options["in_chans"]
        self.feature_info = tuple(map(FeatureInfo, module.feature_channels, module.feature_strides))
        # Of the blocks before each feature map; without directions where these have no SSM.
        self.scan_info = tuple(ScanInfo(*scan) for scan in getattr(module, "scans", ((),) * len(self.feature_info)))
        # Paths of the first layer, which alone depends on in_chans, and of the last.
        self.first_conv: ParamPath = tuple(module.first_conv)
        self.classifier: ParamPath = tuple(module.classifier)
        # Paths of all layers that depend on num_classes.
        self.output_layers: tuple[ParamPath, ...] = tuple(
            map(tuple, getattr(module, "output_layers", (module.classifier,)))
        )
        self.head_modules = head_modules(module)
        self._resample_params = getattr(module, "resample_params", None)
        self._module_type = type(module)

    def __repr__(self) -> str:
        own = self.family.variant_options(self.name)
        changes = [f"{name}={value!r}" for name, value in self.options.items() if own[name] != value]
        height, width = self.input_spec.size
        facts = [", ".join(changes), f"input {height}x{width}x{self.in_chans}", f"{self.num_params:,} parameters"]
        return f"<Model {self.name}: {'; '.join(filter(None, facts))}>"

    def __copy__(self) -> "Model":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        return self

    def apply(
        self, variables: Variables, images: Float[Array, "b h w i"], output: Output = "logits"
    ) -> Float[Array, "b *map k"] | list[Float[Array, "..."]] | tuple[Array, ...]:
        """Compute the logits, the list of feature maps of all stages, or the embedding, for inference.

        Args:
            images: normalized by `input_spec`, at least 32 px high and wide.
            output: "logits", (b, k), or (b, h, w, k) of a model with a head for segmentation, or the `Detections` of a
                detector, and the embedding if `num_classes` is 0; "features"; or "embedding", the pooled input of the
                classifier.

        Raises:
            ModelError: the images are not normalized, have the wrong rank or number of channels or are too small,
                `output` is unknown, or the variables have another structure than those of `init`.
        """
        return self._compute(partial(self._run, output=output), variables, images, None)[0]

    def features(self, variables: Variables, images: Float[Array, "b h w i"]) -> list[Float[Array, "..."]]:
        """Compute the feature maps of all stages, for inference, as `apply(..., output="features")`."""
        return self.apply(variables, images, "features")

    def embed(self, variables: Variables, images: Float[Array, "b h w i"]) -> Float[Array, "b d"]:
        """Compute the pooled input of the classifier, for inference, as `apply(..., output="embedding")`."""
        return self.apply(variables, images, "embedding")

    def apply_train(
        self,
        variables: Variables,
        images: Float[Array, "b h w i"],
        *,
        key: Key[Array, ""] | None = None,
        output: Output = "logits",
    ) -> tuple[Any, Variables]:
        """Compute the output of `apply` in training mode: with dropout, stochastic depth and batch statistics.

        Args:
            key: key of dropout and stochastic depth; None to drop nothing.

        Returns:
            The output, and the running statistics, updated with this batch.
        """

        def train(module: nnx.Module, images: Array, key: Key[Array, ""] | None) -> Any:
            module.train()
            return self._run(module, images, key, output)

        return self._compute(train, variables, images, key)

    def _compute(self, function: Callable[..., Any], variables: Variables, *args: Any) -> tuple[Any, Variables]:
        with use_kernels(self.kernels):
            return super()._compute(function, variables, *args)

    def has_method(self, name: str) -> bool:
        """Return whether `call` can apply a method."""
        return hasattr(self._module_type, name)

    def call(self, variables: Variables, method: str, *args: Any, train: bool = False) -> tuple[Any, Variables]:
        """Apply a method of the module, for tasks that run their models in several stages.

        Args:
            train: normalize by batch statistics.

        Returns:
            The output, and the running statistics, updated if `train`.

        Raises:
            ModelError: models of this family do not have the method.
        """
        if not self.has_method(method):
            raise ModelError(
                f"{self.name} has no method {method!r}, which the task calls; choose a model for this task, or set "
                "config.task to the task of the model"
            )

        def call(module: nnx.Module, *args: Any) -> Any:
            if train:
                module.train()
            return getattr(module, method)(*args)

        return self._compute(call, variables, *args)

    def resample_params(
        self, params: Mapping[ParamPath, Any], img_size: tuple[int, int] | None = None
    ) -> dict[ParamPath, Any]:
        """Resample parameters that were trained at another image size.

        Position embeddings are resampled by the rule of the family, bicubic and in NumPy; all other parameters are
        returned unchanged.

        Args:
            params: arrays by path in `variables["params"]`: all parameters or some of them.
            img_size: (height, width) of the training images. If None, position embeddings of another length are
                assumed to come from square images.

        Raises:
            ModelError: the position embeddings do not match `img_size`, or no square if it is None.
        """
        return dict(params) if self._resample_params is None else self._resample_params(params, img_size)

    def to_nnx(self, variables: Variables, *, rngs: nnx.Rngs | None = None) -> nnx.Module:
        """Build an nnx module with the variables, in evaluation mode; see `models.nnx_module.NNXModel`.

        Args:
            rngs: source of the keys of dropout and stochastic depth in training mode, its stream "dropout".

        Raises:
            ModelError: the variables have another structure than those of `init`.
        """
        from mambaout_jax.models.nnx_module import NNXModel

        return NNXModel(self, self._merge(jax.tree.map(jnp.asarray, self._check(variables))), rngs)

    def from_nnx(self, module: nnx.Module) -> Variables:
        """Return the variables of a module that `to_nnx` built, for example after training.

        Raises:
            ModelError: it is another module, or its layers were changed.
        """
        from mambaout_jax.models.nnx_module import NNXModel

        if not isinstance(module, NNXModel):
            raise ModelError(
                f"the module has type {type(module).__name__}; expected one that model.to_nnx(variables) built"
            )
        states = nnx.state(module.network, nnx.Param), nnx.state(module.network, nnx.BatchStat)
        return self._check(dict(zip(("params", "batch_stats"), map(nnx.to_pure_dict, states), strict=True)))

    def summary(self) -> "Summary":
        """Return a table of output shapes, parameters and multiply-adds: `print(model.summary())`."""
        from mambaout_jax.models.summary import summarize

        return summarize(self)

    def _run(self, module: nnx.Module, images: Array, key: Key[Array, ""] | None, output: Output) -> Any:
        if output not in OUTPUTS:
            raise ModelError(f"output is {output!r}; expected {' or '.join(map(repr, OUTPUTS))}")
        if not hasattr(images, "ndim"):
            raise ModelError(f"images have type {type(images).__name__}; expected an array")
        if images.ndim != 4 or images.shape[3] != self.in_chans:
            raise ModelError(f"images have shape {images.shape}; expected (batch, height, width, {self.in_chans})")
        if min(images.shape[1:3]) < MIN_SIZE:
            raise ModelError(f"images are {images.shape[1]}x{images.shape[2]}; expected at least {MIN_SIZE} px")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ModelError(
                f"images are {images.dtype}; expected normalized floating-point images: pass pixels in 0..255 "
                "through model.input_spec.normalize first"
            )
        if output == "features":
            return module.features(images, key)
        if output == "logits" and self.num_classes:
            return module.logits(images, key)
        if not hasattr(module, "embed"):
            raise ModelError(f"models of the family {self.family.name!r} have no embedding; its module has no `embed`")
        return module.embed(images, key).astype(jnp.float32)
