"""Read a program that was compiled for a TPU: what runs how often, the cycles and the traffic between chips."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.plan.chips import Chip

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
_RUNS = re.compile(r"(?:body|to_apply|calls|(?:branch|called)_computations)=(\{[^}]*\}|%[\w.-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """Hold a line of a program: `shape` is what it gives, as text, `rest` all behind the name of what it does."""

    name: str
    shape: str
    operation: str
    rest: str

    @property
    def cycles(self) -> int:
        """Give the compiler's estimate, or 0 where it has none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """Give the place in the traced function that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Computations = Mapping[str, Mapping[str, Instruction]]


def parse(text: str) -> Computations:
    """Cut a program into computations, by name, each of them instructions by name; that which starts it is "ENTRY"."""
    computations: dict[str, dict[str, Instruction]] = {}
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            instructions = computations["ENTRY" if header[1] else header[2]] = {}
        elif found := re.match(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$", line):
            instructions[found[1]] = Instruction(*found.groups())
    return computations


def executed(computations: Computations) -> Iterator[tuple[str, Instruction, int, bool]]:
    """Yield (computation, instruction, how often it runs, whether its estimate is within that of another).

    Of a choice between branches the first is taken. A loop that ends when something has happened, as where draws are
    rejected, counts as one run of its body.
    """

    def walk(name: str, times: int, within: bool) -> Iterator[tuple[str, Instruction, int, bool]]:
        for instruction in computations[name].values():
            yield name, instruction, times, within
            trips = _trip_count(instruction, computations) or 1
            for runs in _RUNS.findall(instruction.rest):
                callee = re.search(r"%([\w.-]+)", runs)
                if callee and callee[1] in computations:
                    yield from walk(callee[1], times * trips, within or instruction.cycles > 0)

    return walk("ENTRY", 1, False)


def _trip_count(instruction: Instruction, computations: Computations) -> int | None:
    """Tell how often a loop that counts from 0 by 1 up to the constant that ends it runs; None of all else."""
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


def uncounted_loops(text: str) -> list[str]:
    """Name the sources of the loops that do not tell how often they run."""
    computations = parse(text)
    return [
        loop.source
        for _, loop, _, _ in executed(computations)
        if loop.operation == "while" and _trip_count(loop, computations) is None
    ]


def estimated_operations(
    text: str, chip: Chip, schedules: Mapping[tuple[str, str], int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """List the operations of a program with their cycles, each loop's as often as the loop runs.

    "rule" tells where the cycles come from: "compiler", or for Pallas kernels, of which the compiler has no estimate,
    the larger of "bytes", the time that inputs and outputs take to and from memory, and "schedule".

    Args:
        schedules: the cycles of kernels by name and shapes, as `kernel_cycles` counts them.
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
    """Tell whether an instruction is a Pallas kernel."""
    return 'custom_call_target="tpu_custom_call"' in instruction.rest


def collective_bytes(text: str) -> dict[str, int]:
    """Count by kind the bytes that a chip gives to collectives or gets from them, whichever is more, in one run.

    A collective that goes on while other things are computed stands in all their computations, as links of one chain.
    """
    computations = parse(text)
    moved: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for place, instruction, times, _ in executed(computations):
        kind = instruction.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        names = re.findall(r"%([\w.-]+)", instruction.rest.partition(")")[0])
        given = sum(_size(computations[place][name].shape) for name in names)
        got = _size(instruction.shape)
        if instruction.operation in ("all-gather-start", "collective-permute-start"):
            got -= given  # what goes in is named again in what comes out
        # What every chip reduces to its own part, the compiler writes as a reduction of the whole within a fusion.
        kind = "reduce-scatter" if place.startswith("all-reduce-scatter") else kind
        chain = re.search(r'chain_id="\d+"', instruction.rest)
        moved[kind, chain[0] if chain else f"{place} {instruction.name}"][place] += times * max(given, got)
    count: Counter[str] = Counter()
    for (kind, _), places in moved.items():
        count[kind] += max(places.values())
    return dict(count)


def _size(shape: str) -> int:
    """Count the bytes of all arrays that a text names."""
    total = 0
    for dtype, sides in _SHAPE.findall(shape):
        bits = re.search(r"\d+", dtype)
        total += math.prod(map(int, filter(None, sides.split(",")))) * max(int(bits[0]) if bits else 8, 8) // 8
    return total
