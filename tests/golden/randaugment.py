"""Write randaugment.npz: what timm's RandAugment operations make of two small images, at a few levels.

    python -m tests.golden.randaugment

The array "images" is uint8 (2, 24, 20, 3); "NAME/LEVEL/INTERPOLATION" is what operation NAME makes of them at that
signed level, with (124, 116, 104) outside. Made with timm 1.0.31, whose operations are those of 0.6.11.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.pictures import textured
from tests.timm import load_timm

LEVELS = (-9.3, 2.5, 10.0)
FILL = (124, 116, 104)


def timm_operation(name: str, image: np.ndarray, level: float, interpolation: str) -> np.ndarray:
    """Do timm's operation to an image (h, w, c) at a level whose sign is given rather than drawn.

    timm may keep no bits of a posterized image, which this Pillow refuses and older ones made black.
    """
    load_timm()
    from timm.data import auto_augment

    drawn, auto_augment._randomly_negate = auto_augment._randomly_negate, lambda value: -value if level < 0 else value
    try:
        level_to_arguments = auto_augment.LEVEL_TO_ARG[name]
        arguments = level_to_arguments(abs(level), {}) if level_to_arguments else ()
    finally:
        auto_augment._randomly_negate = drawn
    if name.startswith("Posterize") and arguments == (0,):
        return np.zeros_like(image)
    options = {"resample": Image.Resampling[interpolation.upper()], "fillcolor": FILL}
    return np.asarray(auto_augment.NAME_TO_OP[name](Image.fromarray(image), *arguments, **options))


def main() -> None:
    """Write the file beside this one."""
    load_timm()
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS

    # A picture that fills the range, and one that does not, for the operations that stretch it.
    picture = np.asarray(textured(20, 24))
    images = np.stack([picture, (picture // 3 + [40, 90, 120]).astype(np.uint8)])
    arrays = {"images": images}
    for name in dict.fromkeys([*_RAND_INCREASING_TRANSFORMS, *_RAND_TRANSFORMS]):
        for number, level in enumerate(LEVELS):
            interpolation = ("bilinear", "bicubic")[number % 2]
            key = f"{name}/{level}/{interpolation}"
            arrays[key] = np.stack([timm_operation(name, image, level, interpolation) for image in images])
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
