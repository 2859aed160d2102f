"""A small set of images with objects, and its annotations in COCO's format."""

import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "box"}, {"id": 2, "name": "bar"}, {"id": 90, "name": "dot"}]


def write_images(folder, count, seed=0):
    """Write noise with bright rectangles, wide and upright, and return its annotations."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        height, width = (48, 64) if number % 3 else (80, 50)
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        key = 100 + 7 * number
        for part in range(1 + number % 2):
            x, y, w, h = 4 + 25 * part, 6 + 5 * part, 20, 14 + number % 5
            pixels[y : y + h, x : x + w] = (250, 40 + 90 * part, 60)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": key,
                    "category_id": (7, 2)[part],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(folder / f"{key:012d}.png")
        images.append({"id": key, "file_name": f"{key:012d}.png", "height": height, "width": width})
    return {"images": images, "annotations": annotations, "categories": [dict(entry) for entry in CATEGORIES]}


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_coco(root, train=6, validation=4):
    """Write folders and files like those of COCO 2017, and return the number of images of each split."""
    for seed, (folder, count) in enumerate((("train2017", train), ("val2017", validation))):
        content = write_images(root / folder, count, seed)
        write_json(root / "annotations" / f"instances_{folder}.json", content)
    return {"train": train, "validation": validation}
