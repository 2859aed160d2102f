"""LocalVMamba: VMamba with scans of windows, and directions that were searched for each block."""

from mambaout_jax.models.family import Family
from mambaout_jax.models.localmamba import PUBLICATION, RECIPE
from mambaout_jax.models.localvmamba.model import OPTIONS, LocalVMamba
from mambaout_jax.models.localvmamba.variants import VARIANTS
from mambaout_jax.models.localvmamba.weights import ORIGINAL

FAMILY = Family(
    name="localvmamba",
    module=LocalVMamba,
    options=OPTIONS,
    variants=VARIANTS,
    key_formats=(ORIGINAL,),
    recipe=RECIPE,
    output_norms="outnorm#",
    publication=PUBLICATION,
)
