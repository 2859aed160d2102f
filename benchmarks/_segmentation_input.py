"""The data and the peer of `input.py --task segmentation`: PyTorch's DataLoader with mmsegmentation's transforms."""

import argparse
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_CLASSES = 150
BATCH_SIZE = 16
SIZE, BOX, RATIO, CAT_MAX_RATIO = (512, 512), (512, 2048), (0.5, 2.0), 0.75  # of configs/ade20k.py


class LabeledPhotos(tfds.core.GeneratorBasedBuilder):
    """The dataset `labeled_photos`: the photographs of `make_photo` with label maps of large regions."""

    VERSION = tfds.core.Version("1.0.0")
    num_images = 200

    def __init__(self, make_photo: Callable[[int], bytes], **options):
        self._make_photo = make_photo
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(375, 500, 3), encoding_format="jpeg"),
            "label_map": tfds.features.LabeledImage(
                shape=(375, 500, 1), encoding_format="png", labels=[f"class {label}" for label in range(NUM_CLASSES)]
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(self.num_images):
            image = self._make_photo(4 * number + 1)  # landscape format
            yield number, {"image": image, "label_map": make_label_map(number)}


def make_label_map(number: int) -> bytes:
    """Draw and encode a label map."""
    coarse = np.random.default_rng(number).integers(0, NUM_CLASSES, (6, 8), np.uint8)
    file = io.BytesIO()
    Image.fromarray(cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_NEAREST)).save(file, format="PNG")
    return file.getvalue()


def write_files(source, folder: Path) -> list[dict[str, str]]:
    """Write the records of a source as files, and return them as mmsegmentation describes them."""
    samples = []
    for index in range(len(source)):
        record = source[index]
        paths = {"img_path": folder / f"{index}.jpg", "seg_map_path": folder / f"{index}.png"}
        paths["img_path"].write_bytes(record["image"])
        paths["seg_map_path"].write_bytes(record["label_map"])
        samples.append({key: str(path) for key, path in paths.items()})
    return samples


def mmseg_batches(samples: list[dict[str, str]], args: argparse.Namespace) -> Callable:
    """Return the iterator of a DataLoader with mmsegmentation's training pipeline of ADE20K."""
    import torch

    loader = torch.utils.data.DataLoader(
        MmsegFiles(samples),
        batch_size=BATCH_SIZE,
        num_workers=args.workers,
        drop_last=True,
        collate_fn=collate,
        sampler=torch.utils.data.RandomSampler(samples, replacement=True, num_samples=10**7),
    )
    return loader.__iter__


def collate(rows: list) -> list:
    """Collate packed samples to images and label maps: mmengine's default leaves them in lists."""
    import torch

    return [
        torch.stack([row["inputs"] for row in rows]),
        torch.stack([row["data_samples"].gt_sem_seg.data for row in rows]),
    ]


class MmsegFiles:
    """A DataLoader dataset of files with mmsegmentation's transforms, which are built in the worker."""

    def __init__(self, samples: list[dict[str, str]]):
        self._samples, self._transforms = samples, None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int):
        if self._transforms is None:
            self._transforms = mmseg_transforms()
        results = {**self._samples[index], "reduce_zero_label": False, "seg_fields": []}
        for transform in self._transforms:
            results = transform(results)
        return results


def mmseg_transforms() -> list[Callable]:
    """Build the transforms. mmcv-lite has no compiled ops, which mmsegmentation imports but these do not use."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    class StubModule(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    if importlib.util.find_spec("mmcv._ext") is None:
        for name in ("mmcv.ops", "mmcv.ops.point_sample"):
            sys.modules.setdefault(name, StubModule(name))
    from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    return [
        LoadImageFromFile(),
        LoadAnnotations(),
        RandomResize(scale=BOX[::-1], ratio_range=RATIO, keep_ratio=True),
        RandomCrop(crop_size=SIZE, cat_max_ratio=CAT_MAX_RATIO),
        RandomFlip(prob=0.5),
        PhotoMetricDistortion(),
        PadToCrop(),
        PackSegInputs(),
    ]


class PadToCrop:
    """Pad to the size of the crop, which mmsegmentation does after the DataLoader, on the batch."""

    def __call__(self, results: dict) -> dict:
        image, labels = results["img"], results["gt_seg_map"]
        bottom, right = (side - have for side, have in zip(SIZE, labels.shape, strict=True))
        if bottom or right:
            results["img"] = np.pad(image, ((0, bottom), (0, right), (0, 0)))
            results["gt_seg_map"] = np.pad(labels, ((0, bottom), (0, right)), constant_values=255)
        return results
