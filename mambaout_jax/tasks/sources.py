"""What the sources of tasks with classes have in common."""

from collections.abc import Mapping, Sequence
from typing import Any


class ClassSource:
    """Records of one split by index, with the names of their classes. See `data.Source` for the attributes.

    Args:
        records: parsed features by index, such as `data.Records`.
        class_names: in the order of the labels.
        exif_orientation: whether images are turned upright by their EXIF orientation.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        name: str,
        split: str,
        class_names: tuple[str, ...],
        fingerprint: str,
        exif_orientation: bool = False,
    ):
        self._records = records
        self.name = name
        self.split = split
        self.class_names = class_names
        self.fingerprint = fingerprint
        self.exif_orientation = exif_orientation

    @property
    def labels(self) -> Mapping[str, Any]:
        """The class names, and whether images are turned upright, as metadata for JSON."""
        return {"class_names": list(self.class_names), "exif_orientation": self.exif_orientation}

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint})"
