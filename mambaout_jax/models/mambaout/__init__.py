"""MambaOut, and MambaOut with the state space model put back."""

from types import MappingProxyType

from mambaout_jax.models.family import Family
from mambaout_jax.models.mambaout.model import OPTIONS, MambaOut
from mambaout_jax.models.mambaout.recipe import RECIPE
from mambaout_jax.models.mambaout.variants import VARIANTS
from mambaout_jax.models.mambaout.weights import ORIGINAL, TIMM

FAMILY = Family(
    name="mambaout",
    module=MambaOut,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(TIMM, ORIGINAL),
    timm_options=MappingProxyType({"token_mixer": "conv"}),
    recipe=RECIPE,
)
