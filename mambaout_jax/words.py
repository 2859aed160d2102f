"""Numbers with nouns, and lists, in sentences; standard library only."""

from collections.abc import Iterable

_ES = ("s", "x", "tch", "sh")  # but "epochs"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: "1 image", "1,437 images", "2 class folders"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(_ES) else 's'}"


def listed(words: Iterable[str]) -> str:
    """Return words as a list: "a", "a and b", "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def processes(indices: Iterable[int | str]) -> str:
    """Return processes by their indices: "process 1", "processes 1 and 2"."""
    numbers = list(map(str, indices))
    return f"process{'es' if len(numbers) > 1 else ''} {listed(numbers)}"
