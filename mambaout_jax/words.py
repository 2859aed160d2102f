"""Numbers with nouns in sentences; standard library only."""

_ES = ("s", "x", "ch", "sh")


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: "1 image", "1,437 images", "2 class folders"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(_ES) else 's'}"
