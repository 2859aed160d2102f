"""PlainMamba, which scans feature maps of one resolution along continuous paths."""

from mambaout_jax.models.family import Family, Publication
from mambaout_jax.models.plainmamba.model import OPTIONS, PlainMamba
from mambaout_jax.models.plainmamba.recipe import RECIPE
from mambaout_jax.models.plainmamba.variants import VARIANTS
from mambaout_jax.models.plainmamba.weights import ORIGINAL

FAMILY = Family(
    name="plainmamba",
    module=PlainMamba,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    publication=Publication(
        title="PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        paper="https://arxiv.org/abs/2403.17695",
        repository="https://github.com/ChenhongyiYang/PlainMamba",
        license="Apache-2.0",
        bibtex="""@inproceedings{Yang_2024_BMVC,
  author    = {Chenhongyi Yang and Zehui Chen and Miguel Espinosa and Linus Ericsson and Zhenyu Wang and Jiaming Liu
    and Elliot J. Crowley},
  title     = {PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition},
  booktitle = {35th British Machine Vision Conference 2024, {BMVC} 2024, Glasgow, UK, November 25-28, 2024},
  publisher = {BMVA},
  year      = {2024}
}""",
    ),
)
