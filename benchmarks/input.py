"""Time the input pipelines against tf.data and PyTorch's DataLoader with timm's transforms, on the same files.

    python benchmarks/input.py [--task classification] [--rounds 3] [--seconds 6] [--workers 2] [--json PATH]

600 JPEGs of about 500x375 pixels and 100 kB are generated. Each pipeline yields batches of 64 crops of 224 pixels: this
package and tf.data with threads, the DataLoader and the rows "workers" with the same number of processes. Peers that
are not installed are skipped with a message. The exit code is 1 if a claim is missed:

    fast, without RandAugment    600 images/s per core, and 1.1 times tf.data's fused decode-and-crop with the filters
                                 of the recipe: bilinear or bicubic, drawn for each image
    fast, with RandAugment       350 images/s per core
    exact, the full recipe       1.2 times the DataLoader to float, 1.0 times the DataLoader to uint8
    both pipelines               at least 0.85 times the transforms alone in as many processes

With --task segmentation, the dataset is 200 such images with label maps, and a batch is 16 crops of 512 pixels. The
peer is PyTorch's DataLoader with the transforms of mmsegmentation 1.2.2, which needs mmcv-lite 2.1.0, ftfy and regex;
the claim is 1.0 times its speed.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import _segmentation_input as segmentation
import numpy as np
import tensorflow_datasets as tfds
from _timing import machine, median_ratio, write_json
from _torch import import_torch
from PIL import Image

from mambaout_jax.data import TrainTransform, train_batches
from mambaout_jax.data.input_speed import measure_input
from mambaout_jax.data.workers import count_cores
from mambaout_jax.tasks.classification.source import ImageSource, open_source
from mambaout_jax.tasks.classification.transforms import TrainExample
from mambaout_jax.tasks.segmentation.source import SegmentationSource
from mambaout_jax.tasks.segmentation.source import open_source as open_label_maps
from mambaout_jax.tasks.segmentation.transforms import Decoder
from mambaout_jax.tasks.segmentation.transforms import TrainExample as SegmentationExample

BATCH_SIZE = 64
SIZE = 224
RECIPE = {"crop": "random_resized", "flip": 0.5, "interpolation": "random"}
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


class Photos(tfds.core.GeneratorBasedBuilder):
    """The dataset `photos`: images with large shapes, texture and noise, which compress like photographs."""

    VERSION = tfds.core.Version("1.0.0")
    num_images = 600

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["photo"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(self.num_images):
            yield number, {"image": make_photo(number), "label": "photo"}


def make_photo(number: int) -> bytes:
    """Draw and encode one image."""
    rng = np.random.default_rng(number)
    width, height = (500, 375) if number % 4 else (375, 500)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((width, height), Image.BICUBIC),
            np.float32,
        )
        for side in (5, 23, 97)
    ]
    pixels = 0.55 * layers[0] + 0.3 * layers[1] + 0.15 * layers[2] + rng.normal(0, 8, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=94)
    return file.getvalue()


def main() -> int:
    """Print a table with one row per pipeline, and the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        tfds.disable_progress_bar()
        define = classification_forms if args.task == "classification" else segmentation_forms
        source, forms = define(Path(folder), args)
        sizes = [len(source[index]["image"]) for index in range(len(source))]
        needs = {
            "tf.data": ("tensorflow",),
            "timm": ("torch", "timm"),
            "mmseg": ("torch", "mmseg", "mmcv", "ftfy", "regex"),
        }
        for name in list(forms):
            missing = [module for module in needs.get(name.split(",")[0], ()) if not importlib.util.find_spec(module)]
            if missing:
                print(f"{name}: skipped; not installed: {', '.join(missing)}")
                del forms[name]
        seconds: dict[str, list[float]] = {name: [] for name in forms}  # per image
        for _ in range(args.rounds):
            for name, measure in forms.items():
                seconds[name].append(1 / measure())
    cores = min(args.workers, count_cores())
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"files: {len(sizes)}, {np.mean(sizes) / 1e3:.0f} kB on average\n")
    print(f"{'pipeline':<28} {'images/s':>9} {'per core':>8}")
    for name, values in seconds.items():
        print(f"{name:<28} {1 / median(values):9.0f} {1 / median(values) / cores:8.0f}")
    claims = check_claims(seconds, cores)
    print(f"\n{'claim':<52} {'measured':>9} {'at least':>9}")
    for name, (measured, least) in claims.items():
        print(f"{name:<52} {measured:9.2f} {least:9.2f}{'' if measured >= least else '   missed'}")
    write_json(
        args.json,
        {
            "images_per_second": {name: 1 / median(values) for name, values in seconds.items()},
            "claims": {name: {"measured": measured, "least": least} for name, (measured, least) in claims.items()},
        },
    )
    return int(any(measured < least for measured, least in claims.values()))


def check_claims(seconds: dict[str, list[float]], cores: int) -> dict[str, tuple[float, float]]:
    """Return (measured, least) of each claim that could be measured."""
    claims = {
        f"{name}, images/s per core": (1 / median(seconds[name]) / cores, least)
        for name, least in (("fast", 600.0), ("fast, RandAugment", 350.0))
        if name in seconds
    }
    for name, ours_name, peer, least in (
        ("fast / tf.data", "fast", "tf.data", 1.1),
        ("exact / timm to float", "exact, RandAugment", "timm, float", 1.2),
        ("exact / timm to uint8", "exact, RandAugment", "timm, uint8", 1.0),
        ("fast / transforms alone", "fast", "fast, transforms alone", 0.85),
        ("fast, RandAugment / transforms alone", "fast, RandAugment", "fast, RandAugment, alone", 0.85),
        ("exact, RandAugment / transforms alone", "exact, RandAugment", "exact, RandAugment, alone", 0.85),
        ("ours / mmseg", "ours", "mmseg", 1.0),
    ):
        if peer in seconds:
            claims[name] = (median_ratio(seconds[peer], seconds[ours_name]), least)
    return claims


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Write a dataset."""
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def classification_forms(folder: Path, args: argparse.Namespace) -> tuple[ImageSource, dict[str, Callable[[], float]]]:
    """Return the dataset, and what measures each pipeline."""
    prepare(Photos(data_dir=folder, file_format="array_record"))
    source = open_source("photos", "train", folder)
    files = [source[index]["image"] for index in range(len(source))]
    return source, {
        "fast": lambda: ours(source, args, pipeline="fast"),
        "fast, workers": lambda: ours(source, args, workers=args.workers, pipeline="fast"),
        "fast, transforms alone": lambda: transforms_alone(source, args, pipeline="fast"),
        "fast, bilinear": lambda: ours(source, args, pipeline="fast", interpolation="bilinear"),
        "tf.data": lambda: tf_data(files, args, ("bilinear", "bicubic")),
        "tf.data, bilinear": lambda: tf_data(files, args, ("bilinear",)),
        "fast, RandAugment": lambda: ours(source, args, pipeline="fast", auto_augment=RAND_AUGMENT),
        "fast, RandAugment, alone": lambda: transforms_alone(source, args, pipeline="fast", auto_augment=RAND_AUGMENT),
        "exact, RandAugment": lambda: ours(source, args, pipeline="exact", auto_augment=RAND_AUGMENT),
        "exact, RandAugment, workers": lambda: ours(
            source, args, workers=args.workers, pipeline="exact", auto_augment=RAND_AUGMENT
        ),
        "exact, RandAugment, alone": lambda: transforms_alone(
            source, args, pipeline="exact", auto_augment=RAND_AUGMENT
        ),
        "timm, float": lambda: timm_loader(files, args, to_float=True),
        "timm, uint8": lambda: timm_loader(files, args, to_float=False),
    }


def segmentation_forms(
    folder: Path, args: argparse.Namespace
) -> tuple[SegmentationSource, dict[str, Callable[[], float]]]:
    """Return the dataset, and what measures each pipeline."""
    prepare(segmentation.LabeledPhotos(make_photo, data_dir=folder, file_format="array_record"))
    source = open_label_maps("labeled_photos", "train", folder)
    transform = SegmentationExample(
        Decoder(3, segmentation.NUM_CLASSES),
        segmentation.SIZE,
        segmentation.BOX,
        segmentation.RATIO,
        segmentation.CAT_MAX_RATIO,
        flip=0.5,
        photometric=True,
    )

    def measure_ours(workers: int) -> float:
        return rate(
            train_batches(
                source,
                transform,
                batch_size=segmentation.BATCH_SIZE,
                steps_per_epoch=len(source) // segmentation.BATCH_SIZE,
                seed=0,
                num_workers=workers,
            ),
            args,
        )

    def measure_mmseg() -> float:
        return rate(as_batches(segmentation.mmseg_batches(samples, args)), args)

    samples = segmentation.write_files(source, folder)
    return source, {
        "ours": lambda: measure_ours(0),
        "ours, workers": lambda: measure_ours(args.workers),
        "mmseg": measure_mmseg,
    }


def transform_of(**options: str) -> TrainTransform:
    """Build the transform of the recipe."""
    return TrainTransform((SIZE, SIZE), **(RECIPE | options))


def ours(source, args: argparse.Namespace, workers: int = 0, **options: str) -> float:
    """Measure the pipeline of this package in images per second, with threads unless `workers` is set."""
    batches = train_batches(
        source,
        TrainExample(transform_of(**options)),
        batch_size=BATCH_SIZE,
        steps_per_epoch=len(source) // BATCH_SIZE,
        seed=0,
        num_workers=workers,
    )
    return rate(batches, args)


def rate(batches: Iterator[dict[str, np.ndarray]], args: argparse.Namespace) -> float:
    """Measure batches in images per second, like `bench-data`."""
    with contextlib.closing(batches):
        return measure_input(batches, args.seconds).images_per_second


def transforms_alone(source, args: argparse.Namespace, **options: str) -> float:
    """Measure reading and transforming alone in images per second, without Grain and batches, in processes."""
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        work = [(source, transform_of(**options), args.seconds)] * args.workers
        pool.starmap(transform_for, [(source, transform_of(**options), 0.5)] * args.workers)
        return sum(pool.starmap(transform_for, work, chunksize=1))


def transform_for(source, transform: TrainTransform, seconds: float) -> float:
    """Transform records one after the other for some seconds, and return images per second."""
    rng, count, began = np.random.default_rng(0), 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        transform(source[count % len(source)]["image"], rng)
        count += 1
    return count / elapsed


def tf_data(files: list[bytes], args: argparse.Namespace, filters: tuple[str, ...]) -> float:
    """Measure tf.data: random box, fused decode and crop, resize with a random filter and no antialiasing, flip."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    def transform(file):
        shape = tf.image.extract_jpeg_shape(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((0, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(file, window, channels=3)
        resize = [functools.partial(tf.image.resize, image, (SIZE, SIZE), name, antialias=False) for name in filters]
        image = tf.switch_case(tf.random.uniform((), 0, len(filters), tf.int32), resize)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    dataset = dataset.map(transform, num_parallel_calls=args.workers).batch(BATCH_SIZE, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = args.workers
    return rate(as_batches(dataset.with_options(options).as_numpy_iterator), args)


def timm_loader(files: list[bytes], args: argparse.Namespace, *, to_float: bool) -> float:
    """Measure PyTorch's DataLoader with timm's transform of the recipe, in images per second."""
    import torch

    dataset = TimmFiles(files, to_float)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=args.workers,
        drop_last=True,
        collate_fn=dataset.collate,
        sampler=torch.utils.data.RandomSampler(files, replacement=True, num_samples=10**7),
    )
    return rate(as_batches(loader.__iter__), args)


class TimmFiles:
    """A DataLoader dataset of files with timm's transform, which is built in the worker."""

    def __init__(self, files: list[bytes], to_float: bool):
        self._files, self._to_float, self._transform = files, to_float, None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int):
        if self._transform is None:
            self._transform = timm_transform(self._to_float)
        return self._transform(Image.open(io.BytesIO(self._files[index])).convert("RGB")), 0

    def collate(self, rows: list):
        """Collate rows to a batch, for tensors with PyTorch's default function."""
        import torch

        if self._to_float:
            return torch.utils.data.default_collate(rows)
        return torch.from_numpy(np.stack([image for image, _ in rows])), None


def timm_transform(to_float: bool) -> Callable:
    """Build timm's transform without random erasing, which our pipeline leaves to the device."""
    torch = import_torch()
    torch.set_num_threads(1)
    from timm.data import auto_augment, create_transform

    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **options: (
        posterize(image, bits, **options) if bits else Image.new("RGB", image.size)  # Pillow 13 raises for 0 bits
    )
    return create_transform(
        SIZE, is_training=True, auto_augment=RAND_AUGMENT, interpolation="random", use_prefetcher=not to_float
    )


def as_batches(start: Callable[[], Iterator]) -> Iterator[dict[str, np.ndarray]]:
    """Yield another library's batches in the form of ours."""
    for batch in start():
        images = batch[0] if isinstance(batch, list | tuple) else batch
        yield {"image": np.asarray(images), "skipped": np.zeros(len(images), np.int32)}


if __name__ == "__main__":
    sys.exit(main())
