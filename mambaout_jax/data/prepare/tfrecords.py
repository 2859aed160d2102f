"""The byte ranges of images in TFRecord files of tf.train.Example, without TensorFlow and without reading images."""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from mambaout_jax.data.errors import DataError
from mambaout_jax.data.prepare.shards import Item

HEADER_BYTES, FOOTER_BYTES = 12, 4  # length and its checksum; the checksum of the data
CRC_32C = 0x82F63B78  # Castagnoli's polynomial, bits reversed
BYTES = 2  # the wire type of length-delimited fields


def index_tfrecord(path: Path) -> Iterator[Item]:
    """Yield an item with the byte range of each image in a file of records with `image`, `label` and `file_name`.

    The checksums of the lengths are verified; images are verified when they are decoded.

    References:
        tensorflow/core/lib/io/record_writer.h (the framing), protobuf.dev/programming-guides/encoding (the records).

    Raises:
        DataError: the file is not a TFRecord file, is truncated, or its records have other features.
    """
    if not path.stat().st_size:  # mmap rejects empty files
        raise DataError(f"{path} is empty; copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        while position < len(content):
            header = content[position : position + HEADER_BYTES]
            if len(header) < HEADER_BYTES:
                raise DataError(f"{path} is truncated at byte {position}; copy it again")
            length, checksum = struct.unpack("<QI", header)
            if checksum != masked_crc32c(header[:8]):
                raise DataError(f"{path} is not a TFRecord file, or is damaged at byte {position}; copy it again")
            start = position + HEADER_BYTES
            end = start + length
            position = end + FOOTER_BYTES
            if position > len(content):
                raise DataError(f"{path} is truncated in the record at byte {start}; copy it again")
            try:
                item = _find_image(content, start, end, str(path))
            except (ValueError, LookupError, DecodeError):
                raise DataError(
                    f"the record at byte {start} of {path} is not an example with image, label and file_name"
                ) from None
            yield item


def masked_crc32c(data: bytes) -> int:
    """Compute the checksum of TFRecord: CRC-32C, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (CRC_32C if value & 1 else 0)
    return value


CRC_TABLE = tuple(map(_crc_of_byte, range(256)))


def _find_image(content: mmap.mmap, start: int, end: int, path: str) -> Item:
    ranges = {}
    for entry in _fields(content, *_single_field(content, start, end, 1), 1):
        key = _single_field(content, *entry, 1)
        ranges[content[slice(*key)].decode()] = _single_field(content, *entry, 2)
    # BytesList is field 1 of Feature, and its values field 1 of BytesList.
    first, last = _single_field(content, *_single_field(content, *ranges["image"], 1), 1)
    rest = tf_example_pb2.Example().features.feature
    for key in ("label", "file_name"):
        rest[key].ParseFromString(content[slice(*ranges[key])])
    name, label = rest["file_name"].bytes_list.value[0], rest["label"].int64_list.value[0]
    return Item(name.decode(), label, path, first, last - first)


def _single_field(content: mmap.mmap, start: int, end: int, number: int) -> tuple[int, int]:
    (field,) = _fields(content, start, end, number)
    return field


def _fields(content: mmap.mmap, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each field `number` in a message with only length-delimited fields."""
    while start < end:
        tag, start = _varint(content, start)
        length, start = _varint(content, start)
        if tag & 7 != BYTES or start + length > end:
            raise ValueError("not a message of this kind")
        if tag >> 3 == number:
            yield start, start + length
        start += length


def _varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[start]
        value |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return value, start
        shift += 7
