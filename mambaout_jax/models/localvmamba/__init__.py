"""LocalVMamba: VMamba with scans of windows, and directions that were searched for each block."""

from mambaout_jax.models.family import Family, Publication
from mambaout_jax.models.localvmamba.model import OPTIONS, LocalVMamba
from mambaout_jax.models.localvmamba.recipe import RECIPE
from mambaout_jax.models.localvmamba.variants import VARIANTS
from mambaout_jax.models.localvmamba.weights import ORIGINAL

FAMILY = Family(
    name="localvmamba",
    module=LocalVMamba,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    publication=Publication(
        title="LocalMamba: Visual State Space Model with Windowed Selective Scan",
        paper="https://arxiv.org/abs/2403.09338",
        repository="https://github.com/hunto/LocalMamba",
        licence="Apache-2.0",
        bibtex="""@article{huang2024localmamba,
  title={LocalMamba: Visual State Space Model with Windowed Selective Scan},
  author={Huang, Tao and Pei, Xiaohuan and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  journal={arXiv preprint arXiv:2403.09338},
  year={2024}
}""",
    ),
)
