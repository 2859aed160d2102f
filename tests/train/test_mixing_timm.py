"""Mixing and erasing equal timm's for the same random numbers."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.tasks.classification.losses import smooth_one_hot
from mambaout_jax.tasks.classification.mixing import Mix, draw_erasure, erase, mix
from tests.timm import load_timm

pytestmark = pytest.mark.torch


def timm_draws(monkeypatch, *, share, cut, row, column):
    """Patch NumPy's random numbers for timm with the given ones."""
    # The first says whether to mix at all, the second whether to cut.
    monkeypatch.setattr(np.random, "rand", iter([0.0, 0.0 if cut else 1.0]).__next__)
    monkeypatch.setattr(np.random, "beta", lambda a, b: share)
    centre = iter([row, column])
    monkeypatch.setattr(np.random, "randint", lambda *args, **options: next(centre))


@pytest.mark.parametrize("cut", [False, True], ids=["mixup", "cutmix"])
def test_pixels_and_targets_equal_timms_for_the_same_draws(cut, monkeypatch):
    load_timm()
    from timm.data.mixup import FastCollateMixup

    collate = FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, num_classes=1000)
    rng, h, w, compared = np.random.default_rng(3), 24, 18, 0
    while compared < 12:
        share = np.float32(rng.beta(0.8, 0.8))
        sides = [int(size * np.sqrt(1 - float(share))) for size in (h, w)]
        if cut and any(side % 2 for side in sides):
            continue  # timm gives odd sides a pixel more since 1.0; the boxes of 0.6.11 have their own test
        row, column, compared = int(rng.integers(h)), int(rng.integers(w)), compared + 1
        images, labels = rng.integers(0, 256, (8, h, w, 3), np.uint8), rng.integers(0, 1000, 8)
        with monkeypatch.context() as patch:
            timm_draws(patch, share=float(share), cut=cut, row=row, column=column)
            batch = [(image.transpose(2, 0, 1), int(label)) for image, label in zip(images, labels, strict=True)]
            their_images, their_targets = (value.numpy() for value in collate(batch))
        mixed, targets = mix(
            jnp.asarray(images, jnp.float32),
            smooth_one_hot(jnp.asarray(labels), 1000, 0.1),
            Mix(*(jnp.asarray([value]) for value in (cut, share, row, column))),
            round_mixed=True,
        )
        np.testing.assert_array_equal(mixed, their_images.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(targets, their_targets, rtol=2e-7, atol=1e-7)


def test_rectangles_equal_timms_for_the_same_draws(monkeypatch):
    _, torch = load_timm()
    from timm.data.random_erasing import RandomErasing

    h, w = 40, 20  # narrow, so that attempts fail
    draw = draw_erasure(jax.random.key(11), 200, 0.25)
    expected, attempts = torch.zeros(200, 1, h, w), []
    for i in range(200):
        places = iter([float(draw.top[i]), float(draw.left[i])])
        pairs = iter(np.stack([draw.area[i], draw.aspect[i]], 1).ravel().tolist())
        with monkeypatch.context() as patch:
            patch.setattr(random, "random", lambda on=bool(draw.on[i]): 0.0 if on else 1.0)
            patch.setattr(random, "uniform", lambda low, high, pairs=pairs: next(pairs))
            patch.setattr(random, "randint", lambda low, high, places=places: int(next(places) * (high + 1)))
            eraser = RandomErasing(probability=0.25, mode="const", device="cpu")
            expected[i] = 1 - eraser(torch.ones(1, h, w))
        attempts.append(20 - len(list(pairs)))
    assert max(attempts) > 2
    got = erase(jnp.zeros((200, h, w, 1)), jnp.ones((200, h, w, 1)), draw)
    np.testing.assert_array_equal(got[..., 0], expected[:, 0])
