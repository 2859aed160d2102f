"""Folders of images and masks, and ADE20K, become datasets that a segmentation reads; what does not fit is named."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.data import DataError
from mambaout_jax.data.decode import ORIENTATION
from mambaout_jax.data.label_maps import decode_label_map
from mambaout_jax.data.prepare import label_maps, prepare_ade20k, prepare_segmentation
from mambaout_jax.data.sources import read_origin
from mambaout_jax.tasks.segmentation.source import open_source
from mambaout_jax.tasks.segmentation.transforms import Decoder


def write_pair(folder, name, *, size=(20, 30), labels=None, mask_size=None, mode="L", parts=("images", "masks")):
    rng = np.random.default_rng(sum(name.encode()))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, mask_size or size, dtype=np.uint8) if labels is None else labels
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / parts[0] / f"{name}.jpg")
    Image.fromarray(mask).convert(mode).save(folder / parts[1] / f"{name}.png")
    return mask


def encode(labels, encoding="PNG"):
    file = io.BytesIO()
    Image.fromarray(labels).save(file, encoding)
    return file.getvalue()


def gray_png(labels, bits):
    """Encode labels as a gray PNG of the given number of bits per pixel, which Pillow cannot."""
    rows = np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :].reshape(len(labels), -1)
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        file += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return file


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_fewer_bits_are_those_of_the_file(bits):
    labels = np.random.default_rng(0).integers(0, 2**bits, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(decode_label_map(gray_png(labels, bits)), labels)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    masks = {name: write_pair(folder, name, size=(20 + len(name), 30)) for name in ("a", "bb", "ccc", "dddd")}
    (folder / "classes.txt").write_text("sky\nroad\ncar\n")
    return folder, masks


def test_a_folder_becomes_a_dataset(photos, tmp_path):
    folder, masks = photos
    prepared = prepare_segmentation(str(folder), "roads", str(tmp_path / "data"), validation=0.25)
    assert (prepared.num_images, prepared.num_classes) == ({"train": 3, "validation": 1}, 3)
    found = []
    for split in ("train", "validation"):
        source = open_source("roads", split, str(tmp_path / "data"))
        assert source.class_names == ("sky", "road", "car")
        assert (source.size, source.max_size) == (None, (24, 30))
        decode = Decoder(3, 3, source.exif_orientation)
        found += [decode(source[index])[1] for index in range(len(source))]
    assert {(mask.shape, mask.tobytes()) for mask in found} == {(mask.shape, mask.tobytes()) for mask in masks.values()}
    again = prepare_segmentation(str(folder), "roads", str(tmp_path / "data"), validation=0.25)
    assert again.images_per_class is None
    assert read_origin(prepared.folder)["max_size"] == [24, 30]


def test_another_mask_is_noticed(photos, tmp_path):
    folder, _ = photos
    prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    write_pair(folder, "a", size=(21, 30), labels=np.full((21, 30), 2, np.uint8))
    with pytest.raises(DataError, match="written from other images"):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))


def test_classes_without_names_are_numbers(tmp_path):
    write_pair(tmp_path / "photos", "a", labels=np.array([[0, 4], [255, 1]], np.uint8), size=(2, 2))
    prepared = prepare_segmentation(str(tmp_path / "photos"), "numbers", str(tmp_path / "data"))
    assert open_source("numbers", "train", str(tmp_path / "data")).class_names == ("0", "1", "2", "3", "4")
    assert prepared.images_per_class == {"train": [1, 1, 0, 0, 1]}


def test_splits_have_folders_of_their_own(tmp_path):
    for split in ("train", "val"):
        write_pair(tmp_path / "photos" / split, split)
    prepared = prepare_segmentation(str(tmp_path / "photos"), "splits", str(tmp_path / "data"))
    assert prepared.num_images == {"train": 1, "validation": 1}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (
            ("train", "val", "validation"),
            "has train, val and validation, of which two are the validation split; keep",
        ),
        (("", "train"), "has images next to train; keep one of the two layouts"),
        (("", "images/more"), "images has the folder 'more'; expected only images"),
        (("", "masks/more"), "masks has the folder 'more'; expected only images"),
        (("val",), "has neither images and masks nor train/images and train/masks"),
    ],
)
def test_images_that_would_be_left_out_are_refused(tmp_path, folders, words):
    for folder in folders:
        write_pair(tmp_path / "photos" / folder, "a")
    with pytest.raises(DataError, match=words):
        prepare_segmentation(str(tmp_path / "photos"), "splits", str(tmp_path / "data"))


def test_line_breaks_of_windows_and_its_byte_order_mark_are_no_part_of_names(photos, tmp_path):
    folder, _ = photos
    (folder / "classes.txt").write_bytes("\ufeffsky\r\nroad \r\ncar\r\n\r\n".encode())
    prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    assert open_source("roads", "train", str(tmp_path / "data")).class_names == ("sky", "road", "car")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("sky\n\nroad\ncar\n", "line 2 of .*/classes.txt is empty; expected the name of class 1"),
        ("", "line 1 of .*/classes.txt is empty"),
        ("sky\nroad\tstreet\ncar\n", r"line 2 of .*/classes.txt, 'road.tstreet', has control characters"),
        ("sky\nroad\x0bstreet\ncar\n", "line 2 of .*/classes.txt, .* has control characters"),
        ("sky\nroad\ncar\nroad\n", "lines 2 and 4 of .*/classes.txt are both 'road'; rename"),
        ("sky\n", "classes.txt has 1 name; expected at least 2 and at most 255"),
    ],
)
def test_ambiguous_names_of_classes_are_refused(photos, tmp_path, names, words):
    folder, _ = photos
    (folder / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=words):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_name_that_is_not_utf8_is_refused(photos, tmp_path, part):
    folder, _ = photos
    (folder / part / "b\udcffd.png").write_bytes(encode(np.zeros((2, 2), np.uint8)))
    with pytest.raises(DataError, match=rf"the name of the file '.*{part}/b.udcffd.png' is not UTF-8; rename it"):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask_size": (20, 31)}, "the label map is 20x31 (height x width) and its image 20x30"),
        (
            {"labels": np.full((20, 30), 7, np.uint8)},
            "the label map has the label 7; expected 0 to 2 for the 3 classes of classes.txt, or 255",
        ),
        ({"mode": "RGB"}, "the label map has pixels of mode RGB"),
    ],
)
def test_masks_that_do_not_fit_are_named(photos, tmp_path, arguments, words, capfd):
    folder, _ = photos
    write_pair(folder, "e", **arguments)
    with pytest.raises(DataError, match=r"invalid: 1 of 5 image-mask pairs .first: .*/masks/e\.png: the "):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    assert f"invalid: {folder}/masks/e.png: {words}" in capfd.readouterr().err
    prepared = prepare_segmentation(str(folder), "roads", str(tmp_path / "data"), skip_bad=True)
    assert (prepared.num_images["train"], prepared.num_skipped) == (4, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (encode(np.zeros((20, 30), np.uint8), "JPEG"), "the label map is a JPEG, .* expected PNG"),
        (b"GIF", r"the label map cannot be decoded \(its format is unknown\)"),
        (
            encode(np.random.default_rng(0).integers(0, 3, (20, 30), np.uint8))[:90],
            r"the label map cannot be decoded \(OSError: .*truncated",
        ),
    ],
)
def test_damaged_masks_are_named(photos, tmp_path, content, words):
    folder, _ = photos
    (folder / "masks" / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"first: .*/masks/a\.png: {words}"):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))


@pytest.mark.parametrize(("orientation", "upright"), [(1, (20, 30)), (3, (20, 30)), (6, (30, 20)), (8, (30, 20))])
def test_masks_have_the_orientation_of_the_image_as_displayed(tmp_path, orientation, upright):
    folder = tmp_path / "photos"
    write_pair(folder, "a", mask_size=upright)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.open(folder / "images" / "a.jpg").save(folder / "images" / "a.jpg", exif=exif)
    prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    source = open_source("roads", "train", str(tmp_path / "data"))
    assert Decoder(3, 3, source.exif_orientation)(source[0])[0].shape[:2] == upright
    if upright != (20, 30):
        write_pair(folder, "b", parts=("other", "masks"))
        (folder / "images" / "b.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes())
        with pytest.raises(
            DataError, match=r"b\.png: the label map has the size of its image before .* EXIF orientation"
        ):
            prepare_segmentation(str(folder), "roads2", str(tmp_path / "data"))


def write_masks(folder, values):
    """Write a pair for each mask, which has the given labels in equal numbers."""
    for number, labels in enumerate(values):
        write_pair(folder, str(number), size=(2, 6), labels=np.resize(np.array(labels, np.uint8), (2, 6)))


@pytest.mark.parametrize(
    ("values", "words"), [([(0, 255), (0, 0)], "contain only 0 and 255"), ([(255,), (255,)], "contain only 255")]
)
def test_a_foreground_that_would_be_ignored_is_refused(tmp_path, values, words):
    write_masks(tmp_path / "photos", values)
    advice = "if 255 marks the foreground, replace it with 1"
    with pytest.raises(DataError, match=f"'train' {words}, and 255 means ignored; {advice}"):
        prepare_segmentation(str(tmp_path / "photos"), "pets", str(tmp_path / "data"))


def test_an_ignored_foreground_of_the_validation_is_mentioned(tmp_path, capfd):
    write_masks(tmp_path / "photos" / "train", [(0, 1)])
    write_masks(tmp_path / "photos" / "val", [(0, 255)])
    prepare_segmentation(str(tmp_path / "photos"), "pets", str(tmp_path / "data"))
    assert "warning: the masks of split 'validation' contain only 0 and 255" in capfd.readouterr().err


def test_classes_and_masks_without_labeled_pixels_are_mentioned(photos, tmp_path, capfd):
    folder, _ = photos
    prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    assert "warning" not in capfd.readouterr().err
    (folder / "classes.txt").write_text("sky\nroad\ncar\nbus\ntree\n")
    write_pair(folder, "e", labels=np.full((20, 30), 255, np.uint8))
    prepare_segmentation(str(folder), "roads2", str(tmp_path / "data"))
    err = capfd.readouterr().err
    assert "warning: 2 classes in no training mask: bus, tree\n" in err
    assert f"warning: 1 mask with only ignored pixels (first: {folder}/masks/e.png)\n" in err


def test_labels_outside_of_ade20k_are_those_of_the_file(ade20k, tmp_path):
    write_pair(
        ade20k, "ADE_1", labels=np.full((20, 30), 151, np.uint8), parts=("images/training", "annotations/training")
    )
    with pytest.raises(DataError, match="the label 151; expected 0 to 150 for the 150 classes of ADE20K, or 255"):
        prepare_ade20k(str(ade20k), str(tmp_path / "data"))


def test_palettes_are_labels(photos, tmp_path):
    folder, _ = photos
    labels = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)
    write_pair(folder, "e", labels=labels)
    image = Image.fromarray(labels, "P")
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    image.save(folder / "masks" / "e.png")
    prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    source = open_source("roads", "train", str(tmp_path / "data"))
    maps = [Decoder(3, 3)(source[index])[1] for index in range(len(source))]
    assert any(np.array_equal(labels, other) for other in maps)


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_named(photos, tmp_path):
    folder, _ = photos
    (folder / "masks" / "a.png").rename(folder / "masks" / "z.png")
    with pytest.raises(DataError, match=r"a\.jpg has no mask"):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"z\.png has no image"):
        prepare_segmentation(str(folder), "roads", str(tmp_path / "data"))


@pytest.fixture
def ade20k(tmp_path, monkeypatch):
    """Write a small dataset with the layout of ADE20K."""
    monkeypatch.setattr(label_maps, "ADE20K_SPLITS", {"training": ("train", 3), "validation": ("validation", 1)})
    root = tmp_path / "source" / "ADEChallengeData2016"
    for part, names in (("training", ("ADE_1", "ADE_2", "ADE_3")), ("validation", ("ADE_4",))):
        for name in names:
            labels = np.random.default_rng(0).integers(0, 151, (20, 30), dtype=np.uint8)
            write_pair(root, name, labels=labels, parts=(f"images/{part}", f"annotations/{part}"))
    rows = [f"{i}\t0.1\t1\t1\t1\tclass {i}, other" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_ade20k_has_150_classes_and_ignores_0(ade20k, tmp_path, zipped):
    source = ade20k
    if zipped:
        source = tmp_path / "ADEChallengeData2016.zip"
        with zipfile.ZipFile(source, "w") as file:
            for path in sorted(ade20k.rglob("*")):
                file.write(path, path.relative_to(ade20k.parent))
    prepared = prepare_ade20k(str(source), str(tmp_path / "data"), zipped=zipped)
    assert prepared.num_images == {"train": 3, "validation": 1}
    opened = open_source("ade20k", "validation", str(tmp_path / "data"))
    assert opened.class_names[:2] == ("class 1", "class 2")
    labels = Decoder(3, 150)(opened[0])[1].astype(int)
    original = np.asarray(Image.open(ade20k / "annotations" / "validation" / "ADE_4.png")).astype(int)
    np.testing.assert_array_equal(labels, np.where(original == 0, 255, original - 1))


def test_an_incomplete_ade20k_is_refused(ade20k, tmp_path):
    (ade20k / "images" / "training" / "ADE_1.jpg").unlink()
    with pytest.raises(DataError, match="has no image"):
        prepare_ade20k(str(ade20k), str(tmp_path / "data"))
    (ade20k / "annotations" / "training" / "ADE_1.png").unlink()
    with pytest.raises(DataError, match="has 2 images; expected 3"):
        prepare_ade20k(str(ade20k), str(tmp_path / "data"))


# Bytes of the local header and of the central directory of a zip file.
ARCHIVE_DAMAGES = {
    "not an archive": ({0: 0}, {0: 0}),
    "checksum": ({14: 0}, {16: 0}),
    "deflate stream": ({31: 0xFF}, {}),
    "encrypted": ({6: 1}, {8: 1}),
    "deflate64": ({8: 9}, {10: 9}),
}


@pytest.mark.parametrize("damage", ARCHIVE_DAMAGES)
def test_a_damaged_archive_is_named_and_leaves_no_file(tmp_path, damage):
    archive = tmp_path / "broken.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", "content " * 9)
    content = bytearray(archive.read_bytes())
    for start, changes in zip((0, content.index(b"PK\1\2")), ARCHIVE_DAMAGES[damage], strict=False):
        for offset, byte in changes.items():
            content[start + offset] = byte
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"broken.zip cannot be read .*; download it again"):
        prepare_ade20k(str(archive), str(tmp_path / "data"), zipped=True)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_class_names_of_ade20k_that_are_not_utf8_are_named(ade20k, tmp_path):
    (ade20k / "objectInfo150.txt").write_bytes(b"Idx\tName\n1\tcaf\xe9\n")
    with pytest.raises(DataError, match=r"objectInfo150.txt cannot be read .'utf-8' codec"):
        prepare_ade20k(str(ade20k), str(tmp_path / "data"))
