"""The analysis of a compiled program counts loops with their trip counts, and each byte once."""

import re

from mambaout_jax.plan.chips import Chip
from mambaout_jax.plan.hlo import bounded_loops, collective_bytes, estimated_operations, uncounted_loops

CHIP = Chip(memory=1e9, bandwidth=1e9, peak=2e12, cycle_flops=1000, shapes=("1x1",))  # two cycles a byte

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %inner = f32[8,128]{1,0:T(8,128)} negate(%p), backend_config={"estimated_cycles":"1000000"}
}

%all-reduce-scatter.1 (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[2,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.9)
}

%inner_body (i: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %i = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %value = f32[8,128]{1,0:T(8,128)} get-tuple-element(%i), index=1
  %twice = f32[8,128]{1,0:T(8,128)} fusion(%value), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
  %sums = (f32[4]{0:T(128)S(1)}, bf16[3]{0:T(256)(128)(2,1)}) all-reduce(%small, %half), to_apply=%add
  %small = f32[4]{0:T(128)} constant({0, 1, 2, 3})
  %half = bf16[3]{0:T(256)} constant({0, 1, 2})
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%count, %twice)
}

%inner_condition (i: (s32[], f32[8,128])) -> pred[] {
  %i = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%i), index=0
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%n, %bound), direction=LT
}

%outer_body (o: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %o = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %while.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%o), condition=%inner_condition, body=%inner_body, metadata={op_name="jit(step)/while"}
}

%outer_condition (o: (s32[], f32[8,128])) -> pred[] {
  %o = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

ENTRY %main (w: f32[2,128], v: f32[8,128]) -> f32[8,128] {
  %w = f32[2,128]{1,0:T(8,128)} parameter(0)
  %v = f32[8,128]{1,0:T(8,128)} parameter(1)
  %all-gather-start = (f32[2,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) all-gather-start(%w), dimensions={0}
  %all-gather-done = f32[8,128]{1,0:T(8,128)} all-gather-done(%all-gather-start)
  %product = f32[8,8]{1,0:T(8,128)} fusion(%v), calls=%fused, metadata={op_name="jit(step)/dot"}, backend_config={"estimated_cycles":"50"}
  %kernel = (f32[8,8]{1,0:T(8,128)}, s8[16]{0}) custom-call(%product, /*index=1*/%v), custom_call_target="tpu_custom_call", operand_layout_constraints={f32[8,8]{1,0}, f32[8,128]{1,0}}, metadata={op_name="jit(step)/kernel"}
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%start), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %scatter = f32[2,128]{1,0:T(8,128)} fusion(%v), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def operations(text=PROGRAM):
    return {row["operation"]: row for row in estimated_operations(text, CHIP)}


def test_an_operation_counts_as_often_as_the_loops_around_it_run():
    assert operations()["product"]["cycles"] == 50
    assert operations()["twice"]["cycles"] == 5 * 3 * 7


def test_what_is_fused_counts_once():
    assert set(operations()) == {"product", "twice", "kernel"}


def test_a_kernel_counts_as_what_it_moves_over_the_bandwidth():
    assert operations()["kernel"] == {
        "cycles": 2 * (4 * 64 + 16 + 4 * 64 + 4 * 1024),
        "operation": "kernel",
        "shape": "f32[8,8] s8[16]",
        "source": "jit(step)/kernel",
        "rule": "bytes",
    }
    assert operations()["product"]["rule"] == "compiler"


def test_a_kernel_counts_as_its_schedule_where_that_is_longer():
    bytes_alone = operations()["kernel"]["cycles"]
    for scheduled in (bytes_alone - 1, bytes_alone + 1):
        rows = estimated_operations(
            PROGRAM.replace("%kernel =", "%kernel.7 ="), CHIP, {("kernel", "f32[8,8] s8[16]"): scheduled}
        )
        (row,) = (row for row in rows if row["operation"] == "kernel.7")
        longer = scheduled > bytes_alone
        assert (row["cycles"], row["rule"]) == (max(bytes_alone, scheduled), "schedule" if longer else "bytes")


def test_schedules_of_other_shapes_are_not_a_kernels():
    assert estimated_operations(PROGRAM, CHIP, {("kernel", "f32[8,8]"): 10**9}) == estimated_operations(PROGRAM, CHIP)


def test_bytes_of_collectives_are_counted_by_kind_and_as_often_as_they_run():
    assert collective_bytes(PROGRAM) == {
        "all-gather": 4 * 8 * 128,
        "all-reduce": 5 * 3 * (4 * 4 + 2 * 3),
        "reduce-scatter": 4 * 8 * 128,
    }


def test_a_synchronous_gather_counts_its_result():
    text = PROGRAM.replace(
        "(f32[2,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) all-gather-start(", "f32[8,128]{1,0} all-gather("
    )
    assert collective_bytes(text)["all-gather"] == 4 * 8 * 128


PIECES = """
%begin (p: f32[2,128]) -> f32[8,128] {
  %p = f32[2,128]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[8,128]{1,0} all-gather(%p), channel_id=5, frontend_attributes={chain_id="1"}
}

%end (q: f32[2,128]) -> f32[8,128] {
  %q = f32[2,128]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[8,128]{1,0} all-gather(%q), channel_id=5, frontend_attributes={chain_id="1"}
}

ENTRY %main (v: f32[2,128]) -> f32[8,128] {
  %v = f32[2,128]{1,0} parameter(0)
  %before = f32[8,128]{1,0} fusion(%v), calls=%begin
  ROOT %after = f32[8,128]{1,0} fusion(%v), calls=%end
}
"""


def test_an_asynchronous_collective_counts_once():
    assert collective_bytes(PIECES) == {"all-gather": 4 * 8 * 128}
    # Other collectives may have the same channel.
    assert collective_bytes(re.sub(", frontend.*", "", PIECES)) == {"all-gather": 2 * 4 * 8 * 128}


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    assert uncounted_loops(PROGRAM) == []
    more = "compare(%n, %bound), direction=LT\n  ROOT %both = pred[]{:T(512)} and(%less, %other)"
    for text in (
        PROGRAM.replace("direction=LT", "direction=NE"),
        PROGRAM.replace("s32[]{:T(128)} constant(3)", "x()"),
        PROGRAM.replace("ROOT %less", "%less").replace("compare(%n, %bound), direction=LT", more),
    ):
        assert uncounted_loops(text) == ["jit(step)/while"]
        assert operations(text)["twice"]["cycles"] == operations()["twice"]["cycles"] // 3


def test_a_loop_of_unknown_length_counts_as_the_most_runs_that_its_scope_states():
    text = PROGRAM.replace("direction=LT", "direction=NE")
    named = text.replace("jit(step)/while", "jit(step)/at_most_7_runs/vmap/at_most_5_runs/while")
    assert uncounted_loops(named) == []
    assert bounded_loops(named) == [("jit(step)/at_most_7_runs/vmap/at_most_5_runs/while", 5)]
    assert operations(named)["twice"]["cycles"] == 5 * operations(text)["twice"]["cycles"]
    assert bounded_loops(PROGRAM) == []


def test_a_program_without_collectives_has_no_traffic():
    assert collective_bytes("ENTRY %main () -> f32[] {\n  ROOT %a = f32[] constant(1)\n}\n") == {}
