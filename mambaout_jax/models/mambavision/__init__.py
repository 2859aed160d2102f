"""MambaVision, a hybrid of convolutions, selective scans and attention."""

from mambaout_jax.models.family import Family, Publication
from mambaout_jax.models.mambavision.model import OPTIONS, MambaVision
from mambaout_jax.models.mambavision.recipe import RECIPE
from mambaout_jax.models.mambavision.variants import VARIANTS
from mambaout_jax.models.mambavision.weights import ORIGINAL

FAMILY = Family(
    name="mambavision",
    module=MambaVision,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    publication=Publication(
        title="MambaVision: A Hybrid Mamba-Transformer Vision Backbone",
        paper="https://arxiv.org/abs/2407.08083",
        repository="https://github.com/NVlabs/MambaVision",
        license="LicenseRef-NVIDIA-Source-Code-License-NC",
        bibtex="""@inproceedings{hatamizadeh2025mambavision,
  title={Mambavision: A hybrid mamba-transformer vision backbone},
  author={Hatamizadeh, Ali and Kautz, Jan},
  booktitle={Proceedings of the Computer Vision and Pattern Recognition Conference},
  pages={25261--25270},
  year={2025}
}""",
    ),
)
