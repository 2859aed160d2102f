"""VMamba: selective scans of feature maps along rows and columns, in both directions."""

from mambaout_jax.models.family import Family, Publication
from mambaout_jax.models.vmamba.model import OPTIONS, VMamba
from mambaout_jax.models.vmamba.recipe import RECIPE
from mambaout_jax.models.vmamba.variants import VARIANTS
from mambaout_jax.models.vmamba.weights import ARCHIVE, ORIGINAL

FAMILY = Family(
    name="vmamba",
    module=VMamba,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL, ARCHIVE),
    recipe=RECIPE,
    output_norms="outnorm#",
    publication=Publication(
        title="VMamba: Visual State Space Model",
        paper="https://arxiv.org/abs/2401.10166",
        repository="https://github.com/MzeroMiko/VMamba",
        license="MIT",
        bibtex="""@article{liu2024vmamba,
  title={VMamba: Visual State Space Model},
  author={Liu, Yue and Tian, Yunjie and Zhao, Yuzhong and Yu, Hongtian and Xie, Lingxi and Wang, Yaowei and
    Ye, Qixiang and Liu, Yunfan},
  journal={arXiv preprint arXiv:2401.10166},
  year={2024}
}""",
    ),
)
