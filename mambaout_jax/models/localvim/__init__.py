"""LocalVim, a plain backbone of Mamba blocks with windowed scans."""

from mambaout_jax.models.family import Family
from mambaout_jax.models.localmamba import PUBLICATION, RECIPE
from mambaout_jax.models.localvim.model import OPTIONS, LocalVim
from mambaout_jax.models.localvim.variants import VARIANTS
from mambaout_jax.models.localvim.weights import ORIGINAL

FAMILY = Family(
    name="localvim",
    module=LocalVim,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    publication=PUBLICATION,
)
