"""Stacks of identical blocks, unrolled or as one `lax.scan`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from mambaout_jax.models.errors import ModelError
from mambaout_jax.ops.remat import SAVEABLE

# What the backward pass recomputes. "save_matmuls" recomputes all results that are not marked as `saveable`: norms,
# activations and gates.
_POLICIES: Mapping[str, Callable[..., Any] | None] = MappingProxyType(
    {
        "none": None,
        "save_matmuls": jax.checkpoint_policies.save_only_these_names(SAVEABLE),
        "full": jax.checkpoint_policies.nothing_saveable,
    }
)


def chosen_blocks(out_indices: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return the blocks whose outputs are feature maps: those of the option `out_indices`, or else the last one.

    Raises:
        ModelError: they are not increasing indices of blocks.
    """
    chosen = (depth - 1,) if out_indices is None else tuple(out_indices)
    if not chosen or list(chosen) != sorted({index % depth for index in chosen}):
        raise ModelError(f"out_indices is {out_indices}; expected increasing numbers from 0 to {depth - 1}")
    return chosen


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
    """Compute x = block(x, key, drop path rate) for each block in turn.

    The batch statistics of the blocks are updated, for every `scan` and `remat`.

    Args:
        x: an array or a pytree of arrays.
        key: key of the model, folded with the index of each block; None to drop nothing.
        rates: drop path rate of each block.
        first: index of the first block within the model, for folding the key.
        scan: trace and compile one block for all of them. Parameters are stacked in the program, not in the model.
        remat: one of `models.options.REMAT`.

    Raises:
        ValueError: `scan` is set and the blocks are not identical.
    """
    if scan and len(blocks) > 1:
        return _scan(blocks, x, key, rates, first, remat)
    for index, (block, rate) in enumerate(zip(blocks, rates, strict=True), first):
        block_key = _fold_in(key, index)
        graphdef, stats, params = nnx.split(block, nnx.BatchStat, ...)
        x, stats = _rematerialized(partial(_call, graphdef, params, rate), remat)(stats, x, block_key)
        nnx.update(block, stats)
    return x


def _scan(blocks, x, key, rates, first, remat):
    graphdefs, stats, params = zip(*(nnx.split(block, nnx.BatchStat, ...) for block in blocks), strict=True)
    if any(graphdef != graphdefs[0] for graphdef in graphdefs):
        raise ValueError("the blocks to scan differ; expected blocks that differ only in their parameters")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(stats, params, strict=True))

    def body(x, inputs):
        (stats, params), index, rate = inputs
        return _call(graphdefs[0], params, rate if any(rates) else 0.0, stats, x, _fold_in(key, index))

    # XLA does not eliminate common subexpressions across loop iterations, so prevent_cse is unnecessary.
    body = _rematerialized(body, remat, prevent_cse=False)
    x, stats = jax.lax.scan(body, x, (stacked, first + jnp.arange(len(blocks)), jnp.asarray(rates, jnp.float32)))
    for index, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(itemgetter(index), stats))
    return x


def _fold_in(key, index):
    return None if key is None else jax.random.fold_in(key, index)


def _call(graphdef, params, rate, stats, x, key):
    """Call a block as a pure function of its state: JAX transformations lose mutations inside them.

    Returns:
        The output of the block and its updated batch statistics.
    """
    block = nnx.merge(graphdef, stats, params)
    return block(x, key, rate), nnx.state(block, nnx.BatchStat)


def _rematerialized(function, remat, **options):
    return function if _POLICIES[remat] is None else jax.checkpoint(function, policy=_POLICIES[remat], **options)
