"""Analysis of a program compiled for a TPU: execution counts, cycles, and traffic between chips."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.plan.chips import Chip

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
_RUNS = re.compile(r"(?:body|to_apply|calls|(?:branch|called)_computations)=(\{[^}]*\}|%[\w.-]+)")
_BOUND = re.compile(r"\bat_most_(\d+)_runs\b")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """An instruction: `shape` is the shape of its result as text, `rest` the text after the name of the operation."""

    name: str
    shape: str
    operation: str
    rest: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate of the cycles, or 0 without one."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The location in the traced function."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Computations = Mapping[str, Mapping[str, Instruction]]


def parse(text: str) -> Computations:
    """Parse a program into computations by name, each with its instructions by name; the entry point is "ENTRY"."""
    computations: dict[str, dict[str, Instruction]] = {}
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            instructions = computations["ENTRY" if header[1] else header[2]] = {}
        elif found := re.match(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$", line):
            instructions[found[1]] = Instruction(*found.groups())
    return computations


def executed(computations: Computations) -> Iterator[tuple[str, Instruction, int, bool]]:
    """Yield (computation, instruction, execution count, whether another instruction's estimate includes it).

    Conditionals count as their first branch. A loop whose length depends on data, such as rejection sampling, counts
    as one run of its body, or as the maximum trip count that the name of its scope states (`ops.loops.bounded_loop`).
    """

    def walk(name: str, times: int, within: bool) -> Iterator[tuple[str, Instruction, int, bool]]:
        for instruction in computations[name].values():
            yield name, instruction, times, within
            trips = _trip_count(instruction, computations) or _most_trips(instruction) or 1
            for runs in _RUNS.findall(instruction.rest):
                callee = re.search(r"%([\w.-]+)", runs)
                if callee and callee[1] in computations:
                    yield from walk(callee[1], times * trips, within or instruction.cycles > 0)

    return walk("ENTRY", 1, False)


def _trip_count(instruction: Instruction, computations: Computations) -> int | None:
    """Return the trip count of a loop from 0 in steps of 1 to a constant; None for other loops and instructions."""
    if instruction.operation != "while":
        return None
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest):
        return int(known[1])
    condition = re.search(r"condition=%([\w.-]+)", instruction.rest)[1]
    lines = computations[condition].values()
    bounds = [
        line.rest.partition(")")[0] for line in lines if (line.operation, line.shape[:5]) == ("constant", "s32[]")
    ]
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in list(lines)[-1].rest else None


def _most_trips(instruction: Instruction) -> int | None:
    """Return the maximum trip count of a loop, from the name of its innermost scope; None if it states none."""
    if instruction.operation != "while":
        return None
    bounds = _BOUND.findall(instruction.source)
    return int(bounds[-1]) if bounds else None


def bounded_loops(text: str) -> list[tuple[str, int]]:
    """Return the sources of the loops that are counted at their maximum trip count, with this number."""
    computations = parse(text)
    return [
        (loop.source, most)
        for _, loop, _, _ in executed(computations)
        if _trip_count(loop, computations) is None and (most := _most_trips(loop)) is not None
    ]


def uncounted_loops(text: str) -> list[str]:
    """Return the sources of the loops whose trip count is unknown."""
    computations = parse(text)
    return [
        loop.source
        for _, loop, _, _ in executed(computations)
        if loop.operation == "while" and _trip_count(loop, computations) is None and _most_trips(loop) is None
    ]


def estimated_operations(
    text: str, chip: Chip, schedules: Mapping[tuple[str, str], int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return the operations of a program with their cycles, multiplied by the trip counts of the enclosing loops.

    "rule" is the source of the cycles: "compiler" or, for Pallas kernels, which the compiler does not estimate, the
    larger of "bytes", the transfer of inputs and outputs from and to memory, and "schedule".

    Args:
        schedules: cycles of kernels by name and shapes, from `kernel_cycles`.
    """
    operations = []
    for _, instruction, times, within in executed(parse(text)):
        cycles, rule = instruction.cycles, "compiler"
        shape = " ".join(f"{dtype}[{sides}]" for dtype, sides in _SHAPE.findall(instruction.shape))
        if is_kernel(instruction):
            name = re.sub(r"(\.\d+)+$", "", instruction.name)
            scheduled = schedules.get((name, shape), 0)
            arguments = re.search(r"operand_layout_constraints=\{(.*?\})\}", instruction.rest)
            moved = _size(shape) + _size(arguments[1] if arguments else "")
            cycles, rule = max((round(moved / chip.bandwidth * chip.clock), "bytes"), (scheduled, "schedule"))
        if cycles and not within:
            row = {"cycles": times * cycles, "operation": instruction.name, "shape": shape}
            operations.append(row | {"source": instruction.source, "rule": rule})
    return operations


def is_kernel(instruction: Instruction) -> bool:
    """Return whether an instruction is a Pallas kernel."""
    return 'custom_call_target="tpu_custom_call"' in instruction.rest


def collective_bytes(text: str) -> dict[str, int]:
    """Count the bytes per chip and step that collectives send or receive, the larger of both, by kind.

    An asynchronous collective appears in all computations that it overlaps with, linked by a chain id.
    """
    computations = parse(text)
    moved: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for place, instruction, times, _ in executed(computations):
        kind = instruction.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        names = re.findall(r"%([\w.-]+)", instruction.rest.partition(")")[0])
        sent = sum(_size(computations[place][name].shape) for name in names)
        received = _size(instruction.shape)
        if instruction.operation in ("all-gather-start", "collective-permute-start"):
            received -= sent  # the result includes the operands
        # The compiler writes a reduce-scatter as an all-reduce within a fusion of this name.
        kind = "reduce-scatter" if place.startswith("all-reduce-scatter") else kind
        chain = re.search(r'chain_id="\d+"', instruction.rest)
        moved[kind, chain[0] if chain else f"{place} {instruction.name}"][place] += times * max(sent, received)
    count: Counter[str] = Counter()
    for (kind, _), places in moved.items():
        count[kind] += max(places.values())
    return dict(count)


def _size(shape: str) -> int:
    """Count the bytes of all arrays in a string of shapes."""
    total = 0
    for dtype, sides in _SHAPE.findall(shape):
        bits = re.search(r"\d+", dtype)
        total += math.prod(map(int, filter(None, sides.split(",")))) * max(int(bits[0]) if bits else 8, 8) // 8
    return total
