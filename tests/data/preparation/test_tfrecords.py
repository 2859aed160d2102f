import pytest

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare.tfrecords import index_tfrecord, masked_crc32c
from tests.data.preparation import imagenets

IMAGES = {f"{number}.JPEG": bytes([number]) * length for number, length in enumerate((0, 1, 127, 128, 70_000))}


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records"
    imagenets.write_tfrecord(path, [imagenets.serialise(name, data, 300) for name, data in IMAGES.items()])
    return path


def test_the_checksum_is_masked_crc32c():
    # The check value in the catalogue of CRC algorithms, with the mask of TFRecord removed.
    rotated = (masked_crc32c(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert ((rotated << 15 | rotated >> 17) & 0xFFFFFFFF) == 0xE3069283


def test_each_image_has_its_byte_range(records):
    content = records.read_bytes()
    found = {item.file_name: content[item.offset : item.offset + item.size] for item in index_tfrecord(records)}
    assert found == IMAGES
    assert {item.label for item in index_tfrecord(records)} == {300}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:-1], "is truncated in the record at byte"),
        (lambda content: content + b"12345", "is truncated at byte"),
        (lambda content: content[:5] + b"\1" + content[6:], "is not a TFRecord file, or is damaged at byte 0"),
        (
            lambda content: content[:13] + b"\1" + content[14:],
            "the record at byte 12 of .* is not an example",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_offset(records, damage, words):
    records.write_bytes(damage(records.read_bytes()))
    with pytest.raises(DataError, match=words):
        list(index_tfrecord(records))


def test_records_without_the_features_are_refused(tmp_path):
    for record in (b"", b"text that is no message", bytes(range(256)), b"\x0a\x00", b"\xff" * 40):
        imagenets.write_tfrecord(tmp_path / "other", [record])
        with pytest.raises(DataError, match="is not an example with image, label and file_name"):
            list(index_tfrecord(tmp_path / "other"))


def test_a_record_does_not_reach_into_the_next(tmp_path):
    for number in range(20):  # what follows the record, its checksum, looks like a label in every other case
        record = imagenets.serialise(f"{number}.JPEG", b"image", 3)
        imagenets.write_tfrecord(tmp_path / "cut", [record[:-1], record])
        with pytest.raises(DataError, match=r"the record at byte 12 of .* is not an example"):
            list(index_tfrecord(tmp_path / "cut"))
