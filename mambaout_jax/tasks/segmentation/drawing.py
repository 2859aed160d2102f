"""Colors of classes, and pictures of label maps."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mambaout_jax.data.label_maps import IGNORED
from mambaout_jax.tasks.pictures import distinct_color, encode_image

Palette = np.ndarray
# The colors of ADE20K's 150 classes, six hexadecimal digits each, as mmsegmentation shows them.
_ADE20K_COLORS = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
# Of the picture of classes over an image.
OPACITY = 0.55


def make_palette(class_names: Sequence[str]) -> Palette:
    """Return a color for each label, uint8 (256, 3): distinct ones of the classes, and white for ignored pixels.

    A first class named "background" is black. The classes of ADE20K have their usual colors.
    """
    palette = np.zeros((256, 3), np.uint8)
    for index in range(len(class_names)):
        palette[index] = distinct_color(index)
    if len(class_names) == len(_ADE20K_COLORS) // 6 and class_names[0] == "wall":
        palette[: len(class_names)] = np.frombuffer(bytes.fromhex(_ADE20K_COLORS), np.uint8).reshape(-1, 3)
    if class_names and class_names[0] == "background":
        palette[0] = 0
    palette[IGNORED] = 255
    return palette


def encode_label_png(labels: np.ndarray, palette: Palette) -> bytes:
    """Encode a label map as a PNG whose pixels are labels, shown in the colors of a palette."""
    image = Image.fromarray(labels)
    image.putpalette(palette.ravel().tolist())
    return encode_image(image, "PNG", optimize=True)


def overlay(image: np.ndarray, labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Blend an image, uint8 (h, w, c), with the colors of its labels (h, w); black classes leave it unchanged.

    Labeled pixels are gray below their color, so that its hue is the one in the legend.
    """
    image = np.broadcast_to(image, (*labels.shape, 3)).astype(np.float32)
    colors = palette[labels].astype(np.float32)
    shown = colors.any(-1, keepdims=True)
    blend = (1 - OPACITY) * image.mean(-1, keepdims=True) + OPACITY * colors
    return np.where(shown, blend, image).round().astype(np.uint8)
