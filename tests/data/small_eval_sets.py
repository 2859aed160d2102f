"""ImageNet's test sets in the layout of TFDS, with all 1,000 classes and a few images."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from tests.data import photos

NAMES = tuple(Path(imagenet_common.label_names_file()).read_text().split())


class _Labeled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Build a set of drawn photographs; `broken` ones are truncated."""

    VERSION = tfds.core.Version("1.0.0")
    SPLIT: ClassVar = "test"
    labels: ClassVar[Sequence] = ()
    names: ClassVar[Sequence[str]] = NAMES
    broken: ClassVar[Sequence[int]] = ()

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            **self._features(tfds.features.ClassLabel(names=list(self.names))),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _features(self, of_class):
        return {"label": of_class}

    def _example(self, label):
        return {"label": label}

    def _split_generators(self, dl_manager):
        return {self.SPLIT: self._generate_examples()}

    def _generate_examples(self):
        for number, label in enumerate(self.labels):
            image = photos.encode(photos.make_photo(number))
            image = image[:50] if number in self.broken else image
            yield number, {"image": image, "file_name": f"{number}.JPEG", **self._example(label)}


class Imagenet2012(_Labeled, skip_registration=True):
    name = "imagenet2012"
    SPLIT = "validation"


class ImagenetV2(_Labeled, skip_registration=True):
    name = "imagenet_v2"
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in ("matched-frequency", "topimages")]


class ImagenetA(_Labeled, skip_registration=True):
    name = "imagenet_a"


class ImagenetR(_Labeled, skip_registration=True):
    name = "imagenet_r"


class ImagenetSketch(_Labeled, skip_registration=True):
    name = "imagenet_sketch"


class Imagenet2012Real(_Labeled, skip_registration=True):
    name = "imagenet2012_real"
    SPLIT = "validation"

    def _features(self, of_class):
        return {"original_label": of_class, "real_label": tfds.features.Sequence(of_class)}

    def _example(self, label):
        return {"original_label": 0, "real_label": label}


BUILDERS = {
    builder.name: builder
    for builder in (Imagenet2012, ImagenetV2, Imagenet2012Real, ImagenetA, ImagenetR, ImagenetSketch)
}


def write(name: str, data_dir, labels: Sequence, *, names=NAMES, broken=(), **options) -> None:
    """Prepare a set.

    Args:
        labels: of each image: a class, or for imagenet2012_real a list of classes.
        names: of the classes.
        broken: truncated images.
        options: the builder's `config`.
    """
    builder = BUILDERS[name]
    builder.labels, builder.names, builder.broken = labels, names, broken
    photos.write(builder, data_dir, **options)
