"""Datasets made here: JPEGs laid out as imagenette's are, and a source of numbered images in memory."""

import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mambaout_jax.data import DataError

CLASS_NAMES = ("n01440764", "n02102040", "n03888257")
NUM_TRAIN, NUM_VALIDATION = 23, 7
BAD_INDEX = 5


def make_photo(number: int) -> Image.Image:
    """Draw a smooth picture whose size and colours depend on `number`; one is CMYK, one is grey."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    photo = small.resize((int(rng.integers(40, 130)), int(rng.integers(40, 130))), Image.Resampling.BICUBIC)
    return photo.convert({0: "CMYK", 1: "L"}.get(number, "RGB"))


def encode(image: Image.Image, form: str = "JPEG") -> bytes:
    """Encode an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format=form)
    return file.getvalue()


class Photos(tfds.core.GeneratorBasedBuilder):
    """Build `photos` in two configs: "whole", and "broken", where every fifth file is truncated."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in ("whole", "broken")]

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, NUM_TRAIN),
            "validation": self._generate_examples(50, NUM_VALIDATION),
        }

    def _generate_examples(self, first, count):
        for number in range(first, first + count):
            image = encode(make_photo(number))
            if self.builder_config.name == "broken" and number % 5 == 0:
                image = image[: len(image) // 2]
            name = CLASS_NAMES[number % len(CLASS_NAMES)]
            yield number, {"image": image, "label": name, "file_name": f"{name}/{number}.JPEG"}


class Texts(tfds.core.GeneratorBasedBuilder):
    """Build `texts`, a dataset without images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


def write(builder_class, data_dir, file_format="array_record", **options) -> None:
    """Prepare a dataset of this module."""
    builder = builder_class(data_dir=data_dir, file_format=file_format, **options)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


class NumberedSource:
    """Hold `length` grey images; the label of each is its index, and so is its brightness. Some may be broken."""

    name, split, fingerprint = "numbered", "train", "numbered"
    labels: ClassVar = {}

    def __init__(self, length: int, bad: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()):
        self.length, self.bad, self.unreadable = length, bad, unreadable

    def __len__(self):
        return self.length

    def __getitem__(self, index: int) -> dict:
        if index in self.unreadable:
            raise DataError("the record cannot be read")
        image = encode(Image.new("L", (5, 4), index % 256), "PNG")
        return {"image": b"damaged" if index in self.bad else image, "label": index}
