"""A small ImageNet in each of its common forms: three classes, drawn images, the official names."""

import hashlib
import io
import struct
import tarfile

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.prepare.imagenet import ImageNetMetadata
from mambaout_jax.data.prepare.tfrecords import masked_crc32c
from tests.data import photos

CLASS_NAMES = ("n01440764", "n02102040", "n03888257")
VALIDATION_LABELS = ("n03888257", "n01440764", "n02102040", "n01440764", "n03888257", "n02102040")
PNG, CMYK = "n01440764_0.JPEG", "n02102040_6.JPEG"
NUM_IMAGES = {"train": 15, "validation": 6}
METADATA = ImageNetMetadata(CLASS_NAMES, VALIDATION_LABELS, NUM_IMAGES, {})


def train_images():
    """Return {file name: bytes}; one is a PNG, one is CMYK, one is gray."""
    images = {}
    for number in range(NUM_IMAGES["train"]):
        name = f"{CLASS_NAMES[number // 5]}_{number}.JPEG"
        photo = photos.make_photo(100 + number)
        if name == CMYK:
            photo = photo.convert("CMYK")
        elif number == 9:
            photo = photo.convert("L")
        images[name] = photos.encode(photo, "PNG" if name == PNG else "JPEG")
    return images


def validation_images():
    """Return {file name: bytes}."""
    numbers = range(1, NUM_IMAGES["validation"] + 1)
    return {f"ILSVRC2012_val_{number:08d}.JPEG": photos.encode(photos.make_photo(number + 50)) for number in numbers}


def pack(files):
    """Return the bytes of a tar."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write_tars(folder, **changes):
    """Write both tars, with the bytes in `changes` replaced, and return matching metadata."""
    images = train_images()
    inner = {
        f"{name}.tar": pack({file: data for file, data in images.items() if file.startswith(name)})
        for name in CLASS_NAMES
    }
    tars = {"train": pack(inner), "val": pack(validation_images())} | changes
    folder.mkdir(exist_ok=True)
    metadata = {}
    for split, content in tars.items():
        name = f"ILSVRC2012_img_{split}.tar"
        (folder / name).write_bytes(content)
        metadata[name] = (len(content), hashlib.sha256(content).hexdigest())
    return ImageNetMetadata(CLASS_NAMES, VALIDATION_LABELS, NUM_IMAGES, metadata)


def write_folders(folder, *, flat):
    """Write train/CLASS/* and val/* (flat) or val/CLASS/*."""
    for name, data in train_images().items():
        _write(folder / "train" / name.partition("_")[0] / name, data)
    for label, (name, data) in zip(VALIDATION_LABELS, validation_images().items(), strict=True):
        _write(folder / "val" / ("" if flat else label) / name, data)


def write_tfrecords(folder, name="imagenet2012"):
    """Write what TFDS writes, two shuffled files per split and the metadata, and return the folder of the version."""
    target = folder / name / "5.1.0"
    target.mkdir(parents=True)
    labels = [CLASS_NAMES.index(file.partition("_")[0]) for file in train_images()]
    validation_labels = [CLASS_NAMES.index(name) for name in VALIDATION_LABELS]
    template = tfds.core.ShardedFileTemplate(data_dir=target, dataset_name=name, filetype_suffix="tfrecord")
    infos = []
    for split, images, numbers in (
        ("train", train_images(), labels),
        ("validation", validation_images(), validation_labels),
    ):
        records = [serialise(*triple) for triple in zip(images, images.values(), numbers, strict=True)][::-1]
        halves = [records[::2], records[1::2]]
        for index, half in enumerate(halves):
            write_tfrecord(template.replace(split=split).sharded_filepath(shard_index=index, num_shards=2), half)
        lengths = [len(half) for half in halves]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template))
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features={
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            "file_name": tfds.features.Text(),
        },
        split_infos=infos,
        version="5.1.0",
        check_data=False,
    )
    return target


def serialise(file_name, image, label):
    """Return one record in the format of TFDS."""
    example = tf_example_pb2.Example()
    example.features.feature["file_name"].bytes_list.value.append(file_name.encode())
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def write_tfrecord(path, records):
    """Write a TFRecord file."""
    content = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        checksums = [struct.pack("<I", masked_crc32c(data)) for data in (length, record)]
        content += length + checksums[0] + record + checksums[1]
    path.write_bytes(content)


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
