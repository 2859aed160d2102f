"""The 1,797 handwritten digits of scikit-learn, as a TFDS dataset."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_VALIDATION = 360


def encode_digit(pixels: np.ndarray) -> bytes:
    """Encode one digit as a gray PNG, uncompressed, so that its bytes do not depend on the version of zlib.

    Args:
        pixels: (8, 8) values from 0 to 16.
    """
    gray = np.round(pixels * (255 / 16)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, format="PNG", compress_level=0)
    return file.getvalue()


class Digits(tfds.core.GeneratorBasedBuilder):
    """The dataset `digits`: ten classes of 8x8 gray images, 1,437 for training and 360 for validation.

    The split is scikit-learn's `train_test_split(test_size=360, stratify=labels, random_state=0)`, which is common, so
    that results are comparable. Nothing is downloaded.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn's datasets.load_digits, 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        from sklearn import datasets, model_selection  # the import takes a second and is only required for preparation

        digits = datasets.load_digits()
        train, validation = model_selection.train_test_split(
            np.arange(len(digits.target)), test_size=NUM_VALIDATION, stratify=digits.target, random_state=0
        )
        return {
            "train": self._generate_examples(digits, train),
            "validation": self._generate_examples(digits, validation),
        }

    def _generate_examples(self, digits, indices):
        for index in indices.tolist():
            yield index, {"image": encode_digit(digits.images[index]), "label": int(digits.target[index])}
