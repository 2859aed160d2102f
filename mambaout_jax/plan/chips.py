"""What TPUs there are: their chips, and the shapes that slices of them come in.

Reference: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Cloud TPU's documentation,
docs.cloud.google.com/tpu, for peak rates, bandwidths and shapes. libtpu 0.0.51 for the memory that a program may use,
which it names when one does not fit, and for the FLOPs of a cycle: its estimate of a large bfloat16 product has seven
tenths of them or more.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def _deep(most_chips: int) -> tuple[str, ...]:
    """List the shapes of a generation whose chips lie in three dimensions: the larger ones are made of cubes of 4."""
    cubes = itertools.combinations_with_replacement(range(1, most_chips // 64 + 1), 3)
    return (*_SMALL_DEEP, *(f"{4 * a}x{4 * b}x{4 * c}" for a, b, c in cubes if 64 * a * b * c <= most_chips))


class Chip(NamedTuple):
    """Hold what a chip can do, both of its cores together where it has two.

    Args:
        memory: bytes that a program may use; a part of the chip's is kept back.
        bandwidth: bytes a second of that memory.
        peak: FLOPs a second, in bfloat16.
        cycle_flops: FLOPs a cycle at most, in bfloat16.
        shapes: of its slices.
        options: that the compiler needs, for a chip to be one device.
    """

    memory: float
    bandwidth: float
    peak: float
    cycle_flops: int
    shapes: tuple[str, ...]
    options: Mapping[str, str] = MappingProxyType({})

    @property
    def clock(self) -> float:
        """Give the cycles of a second."""
        return self.peak / self.cycle_flops


# FLOPs a cycle: two for each cell of the matrix units, 4 to a core; they are 128x128, those of v6e 256x256.
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "v4": Chip(30.75 * 2**30, 1200e9, 275e12, 2 * 8 * 128**2, _deep(4096), {"chip_config_name": "megacore"}),
        "v5e": Chip(15.75 * 2**30, 819e9, 197e12, 2 * 4 * 128**2, _FLAT),
        "v5p": Chip(95.73 * 2**30, 2765e9, 459e12, 2 * 8 * 128**2, _deep(6144)),
        "v6e": Chip(31.24 * 2**30, 1638e9, 918e12, 2 * 4 * 256**2, _FLAT),
    }
)
