"""Normalization layers: statistics in float32, results in the dtype of the input."""

from flax import nnx
from jaxtyping import Array, Float

from mambaout_jax.models.errors import ModelError
from mambaout_jax.models.layers.parameters import constant, ones, parameter, statistic, zeros
from mambaout_jax.ops import batch_norm, layer_norm, normalize, rms_norm
from mambaout_jax.ops.channels import per_channel


class LayerNorm(nnx.Module):
    """Normalization of the last axis by its mean and variance."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        self.weight = parameter((dim,), ones)
        self.bias = parameter((dim,), zeros)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"], *, centered: bool = False) -> Float[Array, "*batch d"]:
        return layer_norm(x, self.weight[...], self.bias[...], self.eps, centered=centered)


class RMSNorm(nnx.Module):
    """Normalization of the last axis by its root mean square."""

    def __init__(self, dim: int, *, eps: float = 1e-5):
        self.weight = parameter((dim,), ones)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return rms_norm(x, self.weight[...], self.eps)


class BatchNorm(nnx.Module):
    """Normalization of each channel over the batch and all positions, like PyTorch's BatchNorm.

    Inference uses the running statistics. Training (after `module.train()`, called by `Model.apply_train`) uses the
    statistics of the microbatch over all devices, with the biased variance, and updates the running statistics: new =
    (1 - momentum) * old + momentum * batch, with the unbiased variance.

    Args:
        eps: added to the variance.
        momentum: weight of the microbatch in the running statistics.

    Raises:
        ModelError: in training, the microbatch has only one value per channel, so that its variance is undefined.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1):
        self.weight = parameter((dim,), ones)
        self.bias = parameter((dim,), zeros)
        self.running_mean = statistic((dim,), zeros)
        self.running_var = statistic((dim,), ones)
        self.eps = eps
        self.momentum = momentum
        self.use_running_average = True

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        weight, bias, mean, variance = self.weight[...], self.bias[...], self.running_mean[...], self.running_var[...]
        if self.use_running_average:
            return normalize(x, mean, variance, weight, bias, self.eps)
        count = x.size // x.shape[-1]
        if count < 2:
            raise ModelError("batch statistics need at least 2 values per channel; got 1: use a larger microbatch")
        y, batch_mean, batch_variance = batch_norm(x, weight, bias, self.eps)
        unbiased = batch_variance * (count / (count - 1))
        self.running_mean.set_value((1 - self.momentum) * mean + self.momentum * batch_mean)
        self.running_var.set_value((1 - self.momentum) * variance + self.momentum * unbiased)
        return y


class LayerScale(nnx.Module):
    """A learned scale `gamma` per channel."""

    def __init__(self, dim: int, init_value: float):
        self.gamma = parameter((dim,), constant(init_value))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return x * per_channel(self.gamma[...], x)
