"""COCO, and folders of images with annotations in its format, become datasets that a detector reads."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_tools

from mambaout_jax.data import DataError
from mambaout_jax.data.prepare import prepare_coco, prepare_coco_format
from mambaout_jax.data.prepare.coco import decode_counts
from mambaout_jax.tasks.detection.source import open_source
from mambaout_jax.tasks.detection.transforms import EvalExample, ImageTransform, OrientedCanvases, TrainExample
from tests.data import coco_files


def read_all(name, split, data_dir):
    source = open_source(name, split, str(data_dir))
    return source, {record.image_id: record for record in (source[index] for index in range(len(source)))}


@pytest.fixture
def shapes(tmp_path):
    """Return a folder of images and its annotations."""
    return tmp_path / "shapes", coco_files.write_images(tmp_path / "shapes", 6)


def prepare(folder, content, tmp_path, **options):
    file = coco_files.write_json(tmp_path / "objects.json", content)
    return prepare_coco_format(str(folder), str(file), "shapes", str(tmp_path / "data"), **options)


def test_coco_becomes_a_dataset(tmp_path):
    expected = coco_files.write_coco(tmp_path / "coco")
    prepared = prepare_coco(str(tmp_path / "coco"), str(tmp_path / "data"), expected=expected)
    assert prepared.num_images == expected
    for split, folder in (("train", "train2017"), ("validation", "val2017")):
        source, records = read_all("coco2017", split, tmp_path / "data")
        assert (source.class_names, source.category_ids) == (("bar", "box", "dot"), (2, 7, 90))
        content = json.loads((tmp_path / "coco" / "annotations" / f"instances_{folder}.json").read_text())
        assert set(records) == {entry["id"] for entry in content["images"]}
        for image in content["images"]:
            own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            record = records[image["id"]]
            assert record.image == (tmp_path / "coco" / folder / image["file_name"]).read_bytes()
            assert record.objects.ids == [entry["id"] for entry in own]
            np.testing.assert_array_equal(
                record.objects.boxes, [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
            )
            assert record.objects.classes.tolist() == [{2: 0, 7: 1, 90: 2}[entry["category_id"]] for entry in own]
        assert source.groups.tolist() == [
            int(record.objects.size[0] > record.objects.size[1]) for record in source_records(source)
        ]
    again = prepare_coco(str(tmp_path / "coco"), str(tmp_path / "data"), expected=expected)
    assert again.images_per_class is None


def source_records(source):
    return [source[index] for index in range(len(source))]


def test_slices_know_which_images_are_upright(shapes, tmp_path):
    prepare(*shapes, tmp_path)
    whole = open_source("shapes", "train", str(tmp_path / "data"))
    part = open_source("shapes", "train[2:5]", str(tmp_path / "data"))
    np.testing.assert_array_equal(part.groups, whole.groups[2:5])
    assert [part[0].image_id, part[2].image_id] == [whole[2].image_id, whole[4].image_id]


def test_a_fraction_or_a_file_makes_a_validation_split(shapes, tmp_path):
    folder, content = shapes
    prepared = prepare(folder, content, tmp_path, validation=0.34)
    assert prepared.num_images == {"train": 4, "validation": 2}
    kept = {entry["id"] for entry in content["images"][:2]}
    part = {
        **content,
        "images": content["images"][:2],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in kept],
    }
    file = coco_files.write_json(tmp_path / "part.json", part)
    prepared = prepare(folder, content, tmp_path, validation=str(file), overwrite=True)
    assert prepared.num_images == {"train": 6, "validation": 2}


def test_other_annotations_are_noticed(shapes, tmp_path):
    folder, content = shapes
    prepare(folder, content, tmp_path)
    content["annotations"][0]["bbox"][2] += 1
    with pytest.raises(DataError):
        prepare(folder, content, tmp_path)


def spoil(content, fault):
    """Break annotations in one way."""
    annotations, images = content["annotations"], content["images"]
    if fault == "annotation id":
        annotations[1]["id"] = annotations[0]["id"]
    elif fault == "image id":
        images[1]["id"] = images[0]["id"]
    elif fault == "unknown image":
        annotations[0]["image_id"] = 5
    elif fault == "unknown category":
        annotations[0]["category_id"] = 5
    elif fault == "box":
        annotations[0]["bbox"] = [1, 2, 3]
    elif fault == "mask size":
        annotations[0]["segmentation"] = {"size": [3, 3], "counts": [9]}
    elif fault == "missing image":
        images[0]["file_name"] = "absent.png"
    elif fault == "image size":
        images[0]["height"] += 1
        annotations[:] = annotations[1:]
    elif fault == "no list":
        del content["categories"]
    elif fault == "image height":
        images[0]["height"] = "80"
    elif fault in ENTRIES:
        annotations[0].update(ENTRIES[fault])


# Values of the first annotation, of an image of 80x50.
ENTRIES = {
    "boolean id": {"id": True},
    "no finite box": {"bbox": [1, 2, float("nan"), 4]},
    "area as text": {"area": "12"},
    "crowd as text": {"iscrowd": "yes"},
    "list as an image id": {"image_id": [100]},
    "huge number": {"area": 10**400},
    "box far outside": {"bbox": [0, 0, 4e8, 4e8]},
    "polygon far outside": {"segmentation": [[1, 2, 4e8, 2, 3, 9]]},
    "flat polygon": {"segmentation": [1, 2, 3, 4, 5, 6]},
    "odd polygon": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "polygon of words": {"segmentation": [["1", "2", "3", "4", "5", "6"]]},
    "mask that is a word": {"segmentation": "none"},
    "too few counts": {"segmentation": {"size": [80, 50], "counts": [10, 20]}},
    "negative count": {"segmentation": {"size": [80, 50], "counts": [4001, -1]}},
    "short counts": {"segmentation": {"size": [80, 50], "counts": "5"}},
    "cut counts": {"segmentation": {"size": [80, 50], "counts": "o"}},
    "no counts": {"segmentation": {"size": [80, 50]}},
    "no size": {"segmentation": {"size": None, "counts": [4000]}},
}
NAMED = {
    "image height": "image 100 ",
    **dict.fromkeys(ENTRIES, "annotation 1 "),
    "boolean id": "entry 0 of 'annotations'",
    "annotation id": "annotation id 1",
    "image id": "image id 100",
    "unknown image": "image 5",
    "unknown category": "category 5",
    "box": "annotation 1 ",
    "mask size": "annotation 1 ",
    "missing image": "absent.png",
    "image size": "image 100",
    "no list": "categories",
}


@pytest.mark.parametrize("fault", NAMED)
def test_inconsistent_annotations_are_refused_with_their_id(fault, shapes, tmp_path):
    folder, content = shapes
    spoil(content, fault)
    if fault == "image size":  # the first image needs an object to be a training image
        content["annotations"].append(
            {"id": 99, "image_id": 100, "category_id": 7, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
        )
    with pytest.raises(DataError, match=NAMED[fault]):
        prepare(folder, content, tmp_path)


@given(st.data())
@settings(deadline=None)
def test_compressed_counts_are_read_as_by_pycocotools(data):
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    runs = data.draw(st.lists(st.integers(1, height * width), max_size=20))
    flat = (np.searchsorted(np.cumsum(runs), np.arange(height * width), side="right") % 2).astype(np.uint8)
    encoded = mask_tools.encode(np.asfortranarray(flat.reshape(width, height).T))
    counts = decode_counts(encoded["counts"].decode())
    assert sum(counts) == height * width
    assert sum(counts[1::2]) == flat.sum()
    again = mask_tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    assert again["counts"] == encoded["counts"]


def test_images_are_turned_upright_and_annotations_are_those_of_upright_images(shapes, tmp_path):
    folder, content = shapes
    name = content["images"][0]["file_name"]
    with Image.open(folder / name) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # stored with the top at the left
        image.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif)
        upright = np.asarray(image)
    prepare(folder, content, tmp_path)
    source, records = read_all("shapes", "train", tmp_path / "data")
    images = ImageTransform(3, source.exif_orientation, OrientedCanvases.of_images(None, (64, 96)))
    np.testing.assert_array_equal(images.decode(records[100].image), upright)
    content["images"][0].update(height=50, width=80)
    with pytest.raises(DataError, match=r"image 100 is 80x50 \(height x width\) when turned upright, and 50x80"):
        prepare(folder, content, tmp_path, overwrite=True)


@pytest.mark.parametrize("fault", ["missing image", "image size"])
def test_bad_images_can_be_left_out(fault, shapes, tmp_path):
    folder, content = shapes
    spoil(content, fault)
    prepared = prepare(folder, content, tmp_path, skip_bad=True)
    assert prepared.num_images == {"train": 5}


def test_unusual_objects_are_kept_for_evaluation_and_left_out_of_training(shapes, tmp_path, capsys):
    folder, content = shapes
    image = content["images"][0]["id"]
    boxes = {"outside": [300, 5, 9, 9], "no area": [5, 5, 0, 9], "thin": [5, 5, 0.5, 9]}
    number = len(content["annotations"])
    for extra, box in enumerate(boxes.values(), 1):
        content["annotations"].append({"id": number + extra, "image_id": image, "category_id": 90, "bbox": box})
    content["annotations"].append(
        {"id": 99, "image_id": image, "category_id": 90, "bbox": [9, 9, 9, 9], "area": 40, "iscrowd": 1,
         "segmentation": {"size": [80, 50], "counts": [10, 20, 3970]}}
    )  # fmt: skip
    content["annotations"].append(
        {
            "id": 98,
            "image_id": image,
            "category_id": 2,
            "bbox": [9, 9, 9, 9],
            "area": 40,
            "segmentation": [[1, 2, 3, 4]],
        }
    )
    # An image without objects, and one with a crowd only.
    own = [entry for entry in content["annotations"] if entry["image_id"] == content["images"][1]["id"]]
    content["annotations"] = [entry for entry in content["annotations"] if entry not in own]
    of_third = [entry for entry in content["annotations"] if entry["image_id"] == content["images"][2]["id"]]
    for entry in of_third:
        entry["iscrowd"] = 1
    prepared = prepare(folder, content, tmp_path)
    assert prepared.num_images == {"train": 5}
    assert "1 training image left out" in capsys.readouterr().out
    _, records = read_all("shapes", "train", tmp_path / "data")
    objects = records[image].objects
    assert len(objects) == 6
    assert [objects.ids[index] for index in objects.trainable] == [1, 98]
    assert objects.bitmap(5).sum() == 81  # its box
    crowd = records[content["images"][2]["id"]]
    assert len(crowd.objects) == len(of_third)
    assert not len(crowd.objects.trainable)


def transform_for(source, **options):
    canvases = OrientedCanvases.of_images(source.size, (64, 96))
    return ImageTransform(3, source.exif_orientation, canvases, **options)


def test_examples_have_the_objects_where_the_image_has_them(shapes, tmp_path):
    """The rectangles are bright: a box of an example covers bright pixels, and so does its mask, flipped or not."""
    prepare(*shapes, tmp_path)
    source = open_source("shapes", "train", str(tmp_path / "data"))
    images = transform_for(source)
    assert images.canvases.sizes == ((64, 96), (96, 64))
    for flip in (0.0, 1.0):
        transform = TrainExample(images, 3, flip)
        for index in range(len(source)):
            example = transform(source[index], np.random.default_rng(0))
            empty = transform.empty()
            assert example.keys() == empty.keys()
            height, width = example["size"]
            upright = source.groups[index]
            assert example["image"].shape[:2] == images.canvases.sizes[upright]
            assert not example["image"][height:].any()
            assert not example["image"][:, width:].any()
            assert example["present"].sum() == len(source[index].objects)
            for box, mask in zip(example["boxes"][example["present"]], example["masks"], strict=False):
                x1, y1, x2, y2 = box.round().astype(int)
                inside = example["image"][y1 + 2 : y2 - 2, x1 + 2 : x2 - 2, 0]
                assert inside.min() > 200
                assert np.unpackbits(mask).all()


def test_the_largest_objects_are_kept(shapes, tmp_path):
    folder, content = shapes
    image = content["images"][0]["id"]
    for number in range(5):
        box = [2, 2, 10 + number, 10]
        entry = {"id": 50 + number, "image_id": image, "category_id": 7, "bbox": box, "area": 1000 + number}
        content["annotations"].append(entry)
    prepare(folder, content, tmp_path)
    source, records = read_all("shapes", "train", tmp_path / "data")
    example = TrainExample(transform_for(source), 2, 0.0)(records[image], np.random.default_rng(0))
    assert example["present"].all()
    scale = 96 / 80
    np.testing.assert_allclose(example["boxes"][:, 2] - example["boxes"][:, 0], [13 * scale, 14 * scale], rtol=1e-3)


def test_evaluated_images_are_flat_where_canvases_differ(shapes, tmp_path):
    prepare(*shapes, tmp_path)
    source = open_source("shapes", "train", str(tmp_path / "data"))
    transform = EvalExample(transform_for(source))
    empty = transform.empty()
    for index in range(len(source)):
        example = transform(source[index])
        assert {key: value.shape for key, value in example.items()} == {
            key: value.shape for key, value in empty.items()
        }
        assert example["canvas"] == source.groups[index]
        assert tuple(example["original"]) == source[index].objects.size


def test_random_sizes_and_crops_keep_objects_where_the_image_has_them(shapes, tmp_path):
    prepare(*shapes, tmp_path)
    source = open_source("shapes", "train", str(tmp_path / "data"))
    images = ImageTransform(3, False, OrientedCanvases.of_images(None, (128, 224)))
    transform, sizes, missing = TrainExample(images, 3, 0.5, multi_scale=True), set(), 0
    for seed in range(40):
        index = seed % len(source)
        example = transform(source[index], np.random.default_rng(seed))
        canvas = images.canvases.sizes[source.groups[index]]
        assert example["image"].shape[:2] == canvas
        sizes.add(tuple(example["size"].tolist()))
        missing += int(example["present"].sum() < len(source[index].objects))
        for box, mask in zip(example["boxes"][example["present"]], example["masks"], strict=False):
            x1, y1, x2, y2 = box.round().astype(int)
            inside = example["image"][y1 + 3 : y2 - 3, x1 + 3 : x2 - 3, 0]
            assert not inside.size or inside.min() > 200
            assert np.unpackbits(mask).mean() > 0.98
    assert len(sizes) > 15
    assert missing  # some crops leave an object out
