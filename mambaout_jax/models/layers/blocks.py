"""Equal blocks one after another: each by itself, or all of them as the turns of one loop."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from mambaout_jax.models.layers.basic import SAVEABLE

# What the backward pass computes again; "save_matmuls": all but what `saveable` marks, so norms, activations and gates.
REMAT: Mapping[str, Callable[..., Any] | None] = MappingProxyType(
    {
        "none": None,
        "save_matmuls": jax.checkpoint_policies.save_only_these_names(SAVEABLE),
        "full": jax.checkpoint_policies.nothing_saveable,
    }
)


def run_blocks(
    blocks: Sequence[nnx.Module],
    x: Float[Array, "b ..."],
    key: Key[Array, ""] | None,
    rates: Sequence[float],
    *,
    first: int,
    scan: bool,
    remat: str,
) -> Float[Array, "b ..."]:
    """Compute x = block(x, key of the block, rate of the block) for each block in turn.

    Args:
        key: of the model; without one nothing is dropped.
        rates: of drop path, a block each.
        first: index of the first block in the model, which its key is folded with.
        scan: trace and compile one block for all. Their parameters are stacked on the way, and stay apart in the model.
        remat: of `REMAT`.

    Raises:
        ValueError: the blocks to scan are not equal.
    """
    if scan and len(blocks) > 1:
        return _scan(blocks, x, key if any(rates) else None, rates, first, remat)
    for index, (block, rate) in enumerate(zip(blocks, rates, strict=True), first):
        own = jax.random.fold_in(key, index) if key is not None and rate else None
        x = _rematerialized(partial(block, drop_path_rate=rate), remat)(x, own)
    return x


def _scan(blocks, x, key, rates, first, remat):
    (graphdef, *others), states = zip(*map(nnx.split, blocks), strict=True)
    if any(other != graphdef for other in others):
        raise ValueError("blocks that are scanned have to be equal in all but their numbers")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def turn(x, own):
        state, index, rate = own
        folded = None if key is None else jax.random.fold_in(key, index)
        return nnx.merge(graphdef, state)(x, folded, rate), None

    # A loop's turns are not merged with others, so that nothing has to keep the compiler from it.
    turn = _rematerialized(turn, remat, prevent_cse=False)
    return jax.lax.scan(turn, x, (stacked, first + jnp.arange(len(blocks)), jnp.asarray(rates, jnp.float32)))[0]


def _rematerialized(function, remat, **options):
    return function if REMAT[remat] is None else jax.checkpoint(function, policy=REMAT[remat], **options)
