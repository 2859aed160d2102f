"""MambaOut, and MambaOut with the state space model put back."""

from types import MappingProxyType

from mambaout_jax.models.family import Family, Publication
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
    publication=Publication(
        title="MambaOut: Do We Really Need Mamba for Vision?",
        paper="https://arxiv.org/abs/2405.07992",
        repository="https://github.com/yuweihao/MambaOut",
        license="Apache-2.0",
        bibtex="""@inproceedings{yu2025mambaout,
  title={MambaOut: Do We Really Need Mamba for Vision?},
  author={Yu, Weihao and Wang, Xinchao},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2025}
}""",
    ),
)
