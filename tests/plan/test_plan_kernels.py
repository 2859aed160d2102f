"""The cycles of a kernel are the instructions of its schedule, times the sizes of the grid and the loops."""

import re

import jax
import jax.numpy as jnp
import pytest

from mambaout_jax.ops import selective_scan
from mambaout_jax.plan.kernels import count_bundles, kernel_calls

CODE = """\
     0   :  { %s1 = a  ;;  %s2 = b }
   0x1   :  { %s3 = c }
   0x2 LH: > { %s4 = d }
   0x3   : > { %s5 = e  ;;  %s6 = sld [#allocation3] }
   0x4 LB: >> { %v7 = f }
   0x5   : >> { %v8 = g }
   0x6   : >> { %v9 = h }
   0x7 LE: > { %s9 = i }
   0x8 PF:  { %s10 = j }
"""
ORIGINAL = """\
$region0: #{f}
    loop: start=0, step=1, limit=6
                loop: start=0, step=1, limit=1
        loop: start=0, step=1, limit=16
        loop: start=0, step=1, limit=12
"""


def test_bundles_count_as_often_as_they_are_issued():
    assert count_bundles(CODE, ORIGINAL, programs=4) == 3 + 4 * (3 + 16 * 3)


def test_a_kernel_without_loops_counts_its_grid():
    assert count_bundles(CODE.replace(">>", ">"), "    loop: start=0, step=1, limit=6\n", programs=4) == 3 + 4 * 6
    assert count_bundles(CODE.replace(">", ""), "", programs=1) == 9


def test_where_two_cores_share_a_grid_one_half_is_counted():
    assert count_bundles(CODE.replace(">>", ">"), "    loop: start=0, step=1, limit=6\n", programs=8) == 3 + 6 * 6


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
