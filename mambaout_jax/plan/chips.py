"""Generations of TPUs: their chips, and the shapes of their slices.

Reference: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Cloud TPU's documentation,
docs.cloud.google.com/tpu, for peak rates, bandwidths and shapes. libtpu 0.0.51 for the memory available to a program,
from its error message for programs that do not fit, and for the FLOPs per cycle: its estimate of a large bfloat16
product reaches 70 % of them or more.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def _deep(most_chips: int) -> tuple[str, ...]:
    """Return the slice shapes of a generation with a 3D topology; from 64 chips they consist of cubes of 4x4x4."""
    cubes = itertools.combinations_with_replacement(range(1, most_chips // 64 + 1), 3)
    return (*_SMALL_DEEP, *(f"{4 * a}x{4 * b}x{4 * c}" for a, b, c in cubes if 64 * a * b * c <= most_chips))


class Chip(NamedTuple):
    """The specification of a chip, both cores together if it has two.

    Args:
        memory: bytes available to a program; part of the chip's memory is reserved.
        bandwidth: memory bandwidth in bytes per second.
        peak: peak FLOPs per second in bfloat16.
        cycle_flops: peak FLOPs per cycle in bfloat16.
        shapes: slice shapes.
        options: compiler options that make a chip one device.
    """

    memory: float
    bandwidth: float
    peak: float
    cycle_flops: int
    shapes: tuple[str, ...]
    options: Mapping[str, str] = MappingProxyType({})

    @property
    def clock(self) -> float:
        """The clock rate in Hz."""
        return self.peak / self.cycle_flops


# FLOPs per cycle: two per cell of the matrix units. A core has 4 of them, of 128x128 cells, or 256x256 in v6e.
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v4": Chip(30.75 * 2**30, 1200e9, 275e12, 2 * 8 * 128**2, _deep(4096), {"chip_config_name": "megacore"}),
        "v5e": Chip(15.75 * 2**30, 819e9, 197e12, 2 * 4 * 128**2, _FLAT),
        "v5p": Chip(95.73 * 2**30, 2765e9, 459e12, 2 * 8 * 128**2, _deep(6144)),
        "v6e": Chip(31.24 * 2**30, 1638e9, 918e12, 2 * 4 * 256**2, _FLAT),
    }
)
