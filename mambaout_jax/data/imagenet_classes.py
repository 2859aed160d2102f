"""The classes and the size of ImageNet (ILSVRC 2012).

imagenet_classes.tsv has a line per class in label order: its WordNet id and the words of WordNet 3.0 for it, separated
by commas. NOTICE has the license of WordNet.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

# Images of each split. Reference: Russakovsky et al., arXiv:1409.0575, table 2.
IMAGENET_SPLITS = {"train": 1_281_167, "validation": 50_000}


@functools.cache
def _classes() -> dict[str, str]:
    lines = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def imagenet_class_names() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids in label order, as in TFDS's `imagenet2012`."""
    return tuple(_classes())


def class_description(name: str) -> str | None:
    """Return all words of WordNet for a class of ImageNet, such as "tench, Tinca tinca"; None for other classes.

    Args:
        name: name of a class, which in ImageNet is its WordNet id, such as "n01440764".
    """
    return _classes().get(name)


def class_word(name: str) -> str:
    """Return the first word of WordNet for a class of ImageNet, such as "tench"; other names are unchanged.

    Where two classes have the same first word, as the two cranes do, the WordNet id follows it.
    """
    return _words().get(name, name)


@functools.cache
def _words() -> Mapping[str, str]:
    first = {name: words.split(", ")[0] for name, words in _classes().items()}
    count = Counter(word.casefold() for word in first.values())
    return {name: word if count[word.casefold()] == 1 else f"{word} ({name})" for name, word in first.items()}
