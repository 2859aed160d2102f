"""Vision Transformers with full and causal attention."""

from types import MappingProxyType

from mambaout_jax.models.family import Family, Publication
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
    publication=Publication(
        title="Training data-efficient image transformers & distillation through attention",
        paper="https://arxiv.org/abs/2012.12877",
        repository="https://github.com/facebookresearch/deit",
        license="Apache-2.0",
        bibtex="""@inproceedings{touvron2021training,
  title={Training data-efficient image transformers \\& distillation through attention},
  author={Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and
    J{\\'e}gou, Herv{\\'e}},
  booktitle={International Conference on Machine Learning},
  year={2021}
}""",
    ),
)
