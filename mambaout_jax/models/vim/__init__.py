"""Vim, a plain backbone of bidirectional Mamba blocks."""

from mambaout_jax.models.family import Family, Publication
from mambaout_jax.models.vim.model import OPTIONS, Vim
from mambaout_jax.models.vim.recipe import RECIPE
from mambaout_jax.models.vim.variants import VARIANTS
from mambaout_jax.models.vim.weights import ORIGINAL

FAMILY = Family(
    name="vim",
    module=Vim,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    publication=Publication(
        title="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        paper="https://arxiv.org/abs/2401.09417",
        repository="https://github.com/hustvl/Vim",
        license="Apache-2.0",
        bibtex="""@inproceedings{vim,
  title={Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model},
  author={Zhu, Lianghui and Liao, Bencheng and Zhang, Qian and Wang, Xinlong and Liu, Wenyu and Wang, Xinggang},
  booktitle={Forty-first International Conference on Machine Learning}
}""",
    ),
)
