"""Multiply-adds of a function, counted from its jaxpr."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

from mambaout_jax.models.api import Model
from mambaout_jax.models.jaxprs import inner_jaxprs
from mambaout_jax.models.registry import create_model, find_family
from mambaout_jax.ops import use_kernels
from mambaout_jax.ops.selective_scan import run_scan

# Multiply-adds of a selective scan per position and channel: for each state, and in addition, as
# in `count_macs`; `analyze.formulas` counts the operations of the recurrence itself.
SCAN_MACS_PER_STATE, SCAN_MACS_PER_CHANNEL = 9, 1
# Primitives that run the jaxpr in their parameters exactly once.
_RUN_ONCE = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2")


def count_macs(fn: Callable[..., Any], *args: Any) -> int:
    """Count the multiply-adds of all matrix products, convolutions and selective scans in `fn`.

    Everything else is free, including norms and activations. A selective scan of n states counts as 9 n + 1 per
    position and channel, for every implementation, in addition to the products of its projections. This is the rule of
    VMamba's authors (`flops_selective_scan_fn` in their code), whose FLOPs count a multiply-add once. The gradient of a
    scan is not counted correctly.

    A loop (`lax.scan`) counts as its body times its length, a conditional (`lax.cond`, `lax.platform_dependent`) as its
    most expensive branch: an op that is a convolution on some platforms and a sum on others counts as the convolution.

    Args:
        args: arguments of `fn`: arrays or `jax.ShapeDtypeStruct`s, in any pytree.

    Raises:
        ValueError: a primitive runs products an unknown number of times.
    """
    return count_equations(jax.make_jaxpr(fn)(*args).jaxpr.eqns)


def count_equations(equations: Iterable[JaxprEqn]) -> int:
    """Count the multiply-adds of equations of a jaxpr, as `count_macs` does."""
    return sum(map(_count_equation, equations))


def count_model_macs(model: Model) -> int:
    """Count the multiply-adds of a model for one image of its input size."""
    image = jax.ShapeDtypeStruct((1, *model.input_spec.size, model.in_chans), jnp.float32)
    model = fast_to_trace(model)
    with use_kernels("xla"):  # kernels are not counted
        return count_macs(model.apply, model.shapes, image)


def variant_costs(name: str) -> tuple[int, int]:
    """Return the parameters and the multiply-adds of a variant: those that it states, or else counted ones.

    Raises:
        ModelError: the name is unknown.
    """
    variant = find_family(name).variants[name]
    if variant.params is not None and variant.macs is not None:
        return variant.params, variant.macs
    model = create_model(name)
    return model.num_params, count_model_macs(model)


def fast_to_trace(model: Model) -> Model:
    """Return a model with the same multiply-adds that is traced several times faster, where its family has one."""
    if "scan_blocks" not in model.options:
        return model
    return create_model(model.name, **{**model.options, "scan_blocks": True, "kernels": "xla"})


def _count(jaxpr: Jaxpr) -> int:
    return count_equations(jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # Each output sums over the kernel window and the input channels of one group.
        kernel, spec = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return equation.outvars[0].aval.size * math.prod(kernel[axis] for axis in spec[1:])
    if name == "jit" and params["name"] == run_scan.__name__:
        u, _, A, *_ = (var.aval for var in equation.invars)
        return u.size * (SCAN_MACS_PER_STATE * A.shape[-1] + SCAN_MACS_PER_CHANNEL)
    inner = [_count(jaxpr) for jaxpr in inner_jaxprs(params)]
    if not any(inner):
        return 0
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name in _RUN_ONCE:
        return sum(inner)
    raise ValueError(f"the multiply-adds inside {name!r} cannot be counted, because its trip count is unknown")
