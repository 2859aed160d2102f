"""Vision Transformers with full and causal attention."""

from types import MappingProxyType

from mambaout_jax.models.family import Family
from mambaout_jax.models.vit.model import OPTIONS, VisionTransformer
from mambaout_jax.models.vit.variants import VARIANTS
from mambaout_jax.models.vit.weights import TIMM

FAMILY = Family(
    name="vit",
    module=VisionTransformer,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(TIMM,),
    timm_options=MappingProxyType({"attention": "full"}),
)
