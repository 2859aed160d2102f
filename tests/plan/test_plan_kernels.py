"""The cycles of a kernel are the instructions of its schedule, times the sizes of the grid and the loops."""

import re

import jax
import jax.numpy as jnp
import pytest

from mambaout_jax.ops import depthwise_conv2d, selective_scan
from mambaout_jax.plan.kernels import count_bundles, kernel_calls

# A loop over the grid with two loops of different lengths, of which the second has an inner one; after a branch follow
# four delay slots. The test for the end of the outer loop is in the inner one, under its predicate.
CODE = """\
     0   :  { %s1 = a  ;;  %s2 = b }
   0x1 LB: > { %s4 = sphi %s9, %s8 }
   0x2   : > { %s5 = e  ;;  %s6 = sld [#allocation3] }
   0x3 LB: >> { %s7 = sadd.s32 1, %s7  ;;  %p8 = scmp.ge.s32.totalorder %s7, 16 /* loop exit test */ }
   0x4   : >> { %12 = sbr.rel (!%p8) target = $region5 }
   0x5   : >> { %v9 = h }
   0x6   :  {}
   0x7   :  {}
   0x8   :  {}
   0x9 LB: >> { %v7 = f }
   0xa LB: >>> { %p10 = scmp.ge.s32.totalorder %s10, 3 /* loop exit test */ }
   0xb   : >>> { %p11 = scmp.ge.s32.totalorder (%p10), %s11, 5 /* loop exit test */ }
   0xc   : >>> { %13 = sbr.rel (!%p10) target = $region7 }
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   : >>> { %v9 = h }
  0x11   : >> { %14 = sbr.rel (!%p11) target = $region6 }
  0x12   :  {}
  0x13   :  {}
  0x14   :  {}
  0x15   :  {}
  0x16 PF: > { %s9 = i  ;;  %p15 = scmp.ge.s32.totalorder %s4, 6 /* loop exit test */ }
  0x17   : > { %15 = sbr.rel (!%p15) target = $region2 }
  0x18   :  {}
  0x19   :  {}
  0x1a   :  {}
  0x1b   :  {}
  0x1c   :  { %s9 = j }
"""
INNER = 16 * 6 + 5 * (1 + 3 * 7 + 5)


def test_bundles_count_as_often_as_they_are_issued():
    assert count_bundles(CODE, programs=4) == 2 + 4 * (2 + INNER + 6)


def test_a_kernel_without_loops_counts_once():
    assert count_bundles("".join(CODE.splitlines(keepends=True)[:1]), programs=1) == 1


def test_a_loop_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="end of a loop"):
        count_bundles(CODE.replace("(!%p8)", "(!%p99)"), programs=4)


def test_interpreted_kernels_are_not_counted():
    x, kernel = jnp.ones((8, 6, 5, 4)), jnp.ones((3, 3, 1, 4))
    for impl, count in (("auto", 1), ("pallas", 1), ("lax", 0)):
        calls = kernel_calls(jax.make_jaxpr(lambda x, impl=impl: depthwise_conv2d(x, kernel, impl=impl))(x).jaxpr)
        assert len(calls) == count
        assert not any(call.params["interpret"] for call in calls.values())


def test_where_two_cores_share_a_grid_one_half_is_counted():
    assert count_bundles(CODE, programs=12) == 2 + 6 * (2 + INNER + 6)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(32,), (32, 32), (32, 64)])
def test_kernels_of_a_function_are_found_once_for_each_shape(lengths):
    def loss(inputs):
        return sum(selective_scan(*arrays).sum() for arrays in inputs)

    inputs = [
        tuple(
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((2, length, 8), (2, length, 8), (8, 4), (2, length, 4), (2, length, 4))
        )
        for length in lengths
    ]
    calls = kernel_calls(jax.make_jaxpr(jax.grad(loss))(inputs).jaxpr)
    assert sorted(name for name, _ in calls) == sorted(
        ["selective_scan_backward", "selective_scan_forward"] * len(set(lengths))
    )


def test_kernels_have_the_shapes_of_a_compiled_program_on_any_mesh():
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    scan = jax.shard_map(selective_scan, mesh=mesh, in_specs=(rows, rows, whole, rows, rows), out_specs=rows)
    arguments = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 32, 8), (2, 32, 8), (8, 4), (2, 32, 4), (2, 32, 4))
    )
    ((_, shapes),) = kernel_calls(jax.make_jaxpr(scan)(*arguments).jaxpr)
    assert re.fullmatch(r"f32\[[\d,]+\]( f32\[[\d,]+\])*", shapes)
