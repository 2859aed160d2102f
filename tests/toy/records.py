"""Handwritten digits with their brightest pixels as targets; what workers import, without JAX."""

import io

import numpy as np
from PIL import Image

from mambaout_jax.data import open_records

SIDE = 32
MAX_SPOTS = 4


class SpotSource:
    """Digits by index: {"image": bytes, "spots": (n, 2) rows and columns in 0..1}, n from 1 to 4 by the digit."""

    def __init__(self, name, split, data_dir):
        self._records = open_records(name, split, data_dir)
        self.name, self.split = self._records.name, split
        self.fingerprint = self._records.fingerprint(["spot"])
        self.labels = {"kinds": ["spot"]}

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        features = self._records[index]
        image = features["image"].bytes_list.value[0]
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        count = 1 + features["label"].int64_list.value[0] % MAX_SPOTS
        brightest = np.argsort(-pixels.ravel(), kind="stable")[:count]
        places = np.stack(np.unravel_index(brightest, pixels.shape), axis=1)
        return {"image": image, "spots": (places + 0.5) / pixels.shape}


class SpotTransform:
    """Resize the image, and in training mirror image and spots together."""

    def __init__(self, flip):
        self.flip = flip

    def __call__(self, record, rng=None):
        image = np.asarray(Image.open(io.BytesIO(record["image"])).resize((SIDE, SIDE)))[..., None]
        spots = record["spots"]
        if rng is not None and rng.random() < self.flip:
            image, spots = image[:, ::-1], spots * [1, -1] + [0, 1]
        example = self.empty()
        example["image"][:] = image
        example["spots"]["place"][: len(spots)] = spots
        example["spots"]["valid"][: len(spots)] = True
        return example

    def empty(self):
        spots = {"place": np.zeros((MAX_SPOTS, 2), np.float32), "valid": np.zeros(MAX_SPOTS, bool)}
        return {"image": np.zeros((SIDE, SIDE, 1), np.uint8), "spots": spots}
