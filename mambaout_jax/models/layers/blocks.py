"""Sequences of equal blocks: one after another, or as the iterations of one loop."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from mambaout_jax.models.layers.parameters import SAVEABLE
from mambaout_jax.models.options import REMAT

# What the backward pass recomputes; "save_matmuls": all but what `saveable` marks, so norms, activations and gates.
_POLICIES: Mapping[str, Callable[..., Any] | None] = MappingProxyType(
    dict(
        zip(
            REMAT,
            (
                None,
                jax.checkpoint_policies.save_only_these_names(SAVEABLE),
                jax.checkpoint_policies.nothing_saveable,
            ),
            strict=True,
        )
    )
)


def run_blocks(
    blocks: Sequence[nnx.Module],
    x: PyTree[Float[Array, "b ..."]],
    key: Key[Array, ""] | None,
    rates: Sequence[float],
    *,
    first: int,
    scan: bool,
    remat: str,
) -> PyTree[Float[Array, "b ..."]]:
    """Compute x = block(x, key of the block, rate of the block) for each block in turn.

    The batch statistics of the blocks are updated, for every `scan` and `remat`.

    Args:
        x: an array, or several in a tree.
        key: of the model, folded with the index of each block; without one nothing is dropped.
        rates: of drop path, one per block.
        first: index of the first block in the model, which its key is folded with.
        scan: trace and compile one block for all. Their parameters are stacked in the program, not in the model.
        remat: one of `models.options.REMAT`.

    Raises:
        ValueError: the blocks to scan are not equal.
    """
    if scan and len(blocks) > 1:
        return _scan(blocks, x, key, rates, first, remat)
    for index, (block, rate) in enumerate(zip(blocks, rates, strict=True), first):
        own = None if key is None else jax.random.fold_in(key, index)
        graphdef, stats, params = nnx.split(block, nnx.BatchStat, ...)
        x, stats = _rematerialized(partial(_call, graphdef, params, rate), remat)(stats, x, own)
        nnx.update(block, stats)
    return x


def _scan(blocks, x, key, rates, first, remat):
    graphdefs, stats, params = zip(*(nnx.split(block, nnx.BatchStat, ...) for block in blocks), strict=True)
    if any(graphdef != graphdefs[0] for graphdef in graphdefs):
        raise ValueError("the blocks to scan differ; blocks that are equal in all but their parameters are expected")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(stats, params, strict=True))

    def turn(x, own):
        (stats, params), index, rate = own
        folded = None if key is None else jax.random.fold_in(key, index)
        return _call(graphdefs[0], params, rate if any(rates) else 0.0, stats, x, folded)

    # Iterations of a loop are not merged with each other: nothing has to keep the compiler from it.
    turn = _rematerialized(turn, remat, prevent_cse=False)
    x, stats = jax.lax.scan(turn, x, (stacked, first + jnp.arange(len(blocks)), jnp.asarray(rates, jnp.float32)))
    for index, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(itemgetter(index), stats))
    return x


def _call(graphdef, params, rate, stats, x, key):
    """Call a block as a function of its state, because a transformation does not pass on what changes inside it.

    Returns:
        What the block computes, and its batch statistics afterwards.
    """
    block = nnx.merge(graphdef, stats, params)
    return block(x, key, rate), nnx.state(block, nnx.BatchStat)


def _rematerialized(function, remat, **options):
    return function if _POLICIES[remat] is None else jax.checkpoint(function, policy=_POLICIES[remat], **options)
