"""Test images: a gradient, and a photograph-like texture."""

import numpy as np
from PIL import Image


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Draw red over the width, green over the height and blue against red."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def textured(width: int = 200, height: int = 150, seed: int = 0) -> Image.Image:
    """Draw color patches with noise, as detailed as a photograph."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(patches) + rng.normal(0, 8, (height, width, 1))).clip(0, 255).astype(np.uint8))
