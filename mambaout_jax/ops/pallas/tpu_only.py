"""Kernels for TPUs in programs that are lowered for several platforms at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir


def tpu_only(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Compute `kernel(*arguments)` on TPUs, and zeros on other platforms, which are to choose another branch.

    Pallas refuses to lower its kernels for CPUs even in a branch of `lax.platform_dependent` that is for TPUs alone: in
    a program for several platforms, JAX lowers each branch for all of them.
    """
    leaves, structure = jax.tree.flatten(arguments)
    function, shapes = jax.make_jaxpr(lambda *leaves: kernel(*structure.unflatten(leaves)), return_shape=True)(*leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), _primitive.bind(*leaves, function=function))


def _compute(*arguments, function):
    return jaxpr_as_fun(function)(*arguments)


def _zeros(*arguments, function):
    return [jnp.zeros(aval.shape, aval.dtype) for aval in function.out_avals]


def _batch(arguments, axes, *, function):
    mapped = jax.vmap(jaxpr_as_fun(function), axes)
    results = _primitive.bind(*arguments, function=jax.make_jaxpr(mapped)(*arguments))
    return results, [0] * len(results)


_primitive = Primitive("tpu_only")
_primitive.multiple_results = True
_primitive.def_impl(_compute)
_primitive.def_abstract_eval(lambda *arguments, function: function.out_avals)
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, mlir.lower_fun(_compute, multiple_results=True), platform="tpu")
mlir.register_lowering(_primitive, mlir.lower_fun(_zeros, multiple_results=True))
