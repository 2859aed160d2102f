"""A model with its variables as one `flax.nnx.Module`, for training loops written with nnx."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.api import Model, Output
from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.options import DROP_RATES
from mambaout_jax.ops import use_kernels

Source = nnx.Rngs | nnx.RngStream | Key[Array, ""] | None


class NNXModel(nnx.Module):
    """A network that contains its variables, built by `Model.to_nnx`; `Model.from_nnx` returns its variables.

    It starts in evaluation mode, as after `eval()`. After `train()`, it applies dropout and stochastic depth and
    normalizes by batch statistics, and each call updates the running statistics and draws a key.

    Args:
        model: the model that the module was built from; it has the `input_spec`.
        network: the module of the model's family, whose paths are those of the variables.
        rngs: source of keys; its stream "dropout" is forked. None to pass `rngs` to each call instead.
    """

    def __init__(self, model: Model, network: nnx.Module, rngs: nnx.Rngs | None = None):
        for _, state in nnx.iter_graph(network):
            if isinstance(state, nnx.Variable):
                state.del_metadata("initializer")
        self.model = model
        self.network = network
        self.deterministic = True
        stream = _dropout_stream(rngs)
        self.rngs = nnx.data(None if stream is None else stream.fork())

    def __call__(
        self,
        images: Float[Array, "b h w i"],
        output: Output = "logits",
        *,
        rngs: Source = None,
    ) -> Float[Array, "b k"] | list[Float[Array, "..."]]:
        """Compute the logits, the list of feature maps of all stages, or the embedding.

        Args:
            images: as in `Model.apply`.
            output: as in `Model.apply`.
            rngs: source of the key in training mode: its stream "dropout", a stream or a key; None for that of the
                module.

        Raises:
            ModelError: as in `Model.apply`, or a training step lacks the key of dropout or stochastic depth.
        """
        key = None if self.deterministic else self._draw_key(self.rngs if rngs is None else rngs)
        with use_kernels(self.model.kernels):
            return self.model._run(self.network, images, key, output)

    def features(self, images: Float[Array, "b h w i"], *, rngs: Source = None) -> list[Float[Array, "..."]]:
        """Compute the feature maps of all stages, as a call with output="features"."""
        return self(images, "features", rngs=rngs)

    def embed(self, images: Float[Array, "b h w i"], *, rngs: Source = None) -> Float[Array, "b d"]:
        """Compute the pooled input of the classifier, as a call with output="embedding"."""
        return self(images, "embedding", rngs=rngs)

    def set_view(self, deterministic: bool | None = None, use_running_average: bool | None = None) -> None:
        """Set the mode of a copy; called by `nnx.view`."""
        modes = {"deterministic": deterministic, "use_running_average": use_running_average}
        given = {name: value for name, value in modes.items() if value is not None}
        self.set_attributes(raise_if_not_found=False, **given)

    def _draw_key(self, rngs: Source) -> Key[Array, ""] | None:
        rngs = _dropout_stream(rngs)
        if rngs is not None:
            return rngs if isinstance(rngs, jax.Array) else rngs()
        rates = {name: self.model.options.get(name) for name in DROP_RATES}
        if name := next(filter(rates.get, rates), None):
            raise ModelError(
                f"{name} is {rates[name]} but the module has no source of keys in training mode; pass rngs=nnx.Rngs(0) "
                "to to_nnx or to the call"
            )
        return None


def _dropout_stream(rngs: Source) -> nnx.RngStream | Key[Array, ""] | None:
    """Return the stream "dropout" or else "default" of Rngs, None if they have neither; other sources unchanged."""
    return getattr(rngs, "dropout", None) if isinstance(rngs, nnx.Rngs) else rngs
