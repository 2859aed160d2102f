"""A detector in miniature: a map of cells, a first stage that scores them, a second that refines some of them."""

import jax.numpy as jnp
from flax import nnx

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.family import Family, Variant
from mambaout_jax.models.key_format import KeyFormat, Rule, same_names
from mambaout_jax.models.layers.conv import Conv2d
from mambaout_jax.models.layers.drop import dropout
from mambaout_jax.models.layers.linear import Linear
from mambaout_jax.models.layers.norm import BatchNorm
from mambaout_jax.models.layers.parameters import ones, parameter, uniform_within
from mambaout_jax.models.options import COMMON
from mambaout_jax.ops import gelu

CELL = 4  # pixels


class Spotter(nnx.Module):
    """A backbone of two convolutions and two heads; both the backbone and the first head have batch statistics."""

    first_conv, classifier = ("stem",), ("score",)
    feature_strides = (CELL,)

    def __init__(self, *, num_classes: int, in_chans: int, dim: int, drop_rate: float, dtype: str):
        dtype, initializer = jnp.dtype(dtype), uniform_within(0.3)
        self.stem = Conv2d(in_chans, dim, CELL, stride=CELL, bias=False, initializer=initializer, dtype=dtype)
        self.norm = BatchNorm(dim)
        self.proposal = Conv2d(dim, dim, 3, padding=1, bias=False, initializer=initializer, dtype=dtype)
        self.proposal_norm = BatchNorm(dim)
        self.score = Linear(dim, num_classes, initializer=initializer, dtype=dtype)
        self.log_scale = parameter((1,), ones)
        self.refiner = Linear(dim, 2, initializer=initializer, dtype=dtype)
        self.feature_channels = (dim,)
        self.drop_rate = drop_rate

    def features(self, images, key):
        x = gelu(self.norm(self.stem(images)))
        return [dropout(x, self.drop_rate, key)]

    def propose(self, x):
        """Score the cells of a map (b, h, w, d) for each kind: (b, h, w, k)."""
        x = gelu(self.proposal_norm(self.proposal(x)))
        return (self.score(x) * jnp.exp(self.log_scale[None, None, None, :])).astype(jnp.float32)

    def refine(self, x):
        """Compute the place of a spot inside its cell from the cell's features: (*, d) to (*, 2)."""
        return self.refiner(x).astype(jnp.float32)

    def logits(self, images, key):
        """Compute how many spots of each kind there are, up to a factor: what a classifier has for logits."""
        return self.propose(self.features(images, key)[-1]).mean((1, 2))


TORCH = KeyFormat(
    "spotter",
    (
        *same_names("stem.*"),
        Rule("bn.*", "norm.*"),
        Rule("rpn.conv.*", "proposal.*"),
        Rule("rpn.bn.*", "proposal_norm.*"),
        Rule("rpn.cls_logits.*", "score.*"),
        Rule("rpn.logit_scale", "log_scale"),
        Rule("roi.bbox_pred.*", "refiner.*"),
    ),
    ignored=("**.num_batches_tracked",),
)

FAMILY = Family(
    name="spotter",
    module=Spotter,
    options={**COMMON, "dim": ConfigKey(int, "1..1024", 8, "channels of the map")},
    variants={"spotter_small": Variant({"dim": 8}, size=32), "spotter_wide": Variant({"dim": 16}, size=32)},
    key_formats=(TORCH,),
)
