import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mambaout_jax.ops import normalize_images
from mambaout_jax.tasks.classification.losses import cross_entropy, smooth_one_hot
from mambaout_jax.tasks.classification.mixing import (
    Augmentation,
    Erasure,
    Mix,
    augment,
    cutmix_box,
    draw_erasure,
    draw_mix,
    erase,
    mix,
    random_crop,
    rotate,
)

KEY = jax.random.key(11)


def noise(batch=8, h=6, w=5, c=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, h, w, c)), jnp.float32)


def test_loss_is_the_soft_target_cross_entropy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(4, 7)), rng.dirichlet(np.ones(7), size=4)
    expected = -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_smoothing_has_the_recipes_values():
    targets = smooth_one_hot(jnp.asarray([3]), 1000, 0.1)[0]
    np.testing.assert_allclose(targets[3], 0.9 + 0.0001, rtol=1e-6)
    np.testing.assert_allclose(targets[4], 0.0001, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(), 1.0, rtol=1e-5)


def test_normalization_is_the_recipes_formula():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    got = normalize_images(jnp.asarray(images), tuple(mean), tuple(std))
    np.testing.assert_allclose(got, (images - 255 * mean) / (255 * std), rtol=1e-4, atol=1e-5)


def one_group(share, *, cut=False, row=0, column=0):
    """Return a draw of the given values for one group."""
    return Mix(jnp.asarray([cut]), jnp.asarray([share], jnp.float32), jnp.asarray([row]), jnp.asarray([column]))


def both_groups(*groups):
    return Mix(*(jnp.concatenate(values) for values in zip(*groups, strict=True)))


@pytest.mark.slow
def test_a_batch_is_mixed_as_the_formula_says():
    x, targets = noise(batch=6), jnp.eye(6, dtype=jnp.float32)
    # Sides of 6 sqrt(0.5) = 4 and 5 sqrt(0.5) = 3 pixels: two rows and one column on either side of the center.
    draw = both_groups(one_group(0.3), one_group(0.5, cut=True, row=2, column=3))
    box = np.zeros((6, 5, 1), bool)
    box[0:4, 2:4] = True
    mixed, mixed_targets = mix(x, targets, draw)
    flipped = [2, 1, 0, 5, 4, 3]  # inside each group of three
    for i in range(6):
        lam = (0.3, 1 - 8 / 30)[i // 3]
        expected = 0.3 * x[i] + 0.7 * x[flipped[i]] if i < 3 else jnp.where(box, x[flipped[i]], x[i])
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed_targets[i], lam * targets[i] + (1 - lam) * targets[flipped[i]], rtol=1e-5)


@pytest.mark.slow
def test_a_share_of_one_changes_nothing():
    x, targets = noise(batch=4), jnp.eye(4, dtype=jnp.float32)
    for draw in (one_group(1.0), one_group(1.0, cut=True, row=3, column=2)):
        mixed, mixed_targets = mix(x, targets, draw, round_mixed=True)
        np.testing.assert_array_equal(mixed, x)
        np.testing.assert_array_equal(mixed_targets, targets)


def test_rounding_touches_pixels_of_mixup_alone():
    x, targets = 255 * noise(batch=4), jnp.eye(4, dtype=jnp.float32)
    draw = both_groups(one_group(0.3), one_group(0.5, cut=True, row=2, column=3))
    exact, rounded = (mix(x, targets, draw, round_mixed=value)[0] for value in (False, True))
    np.testing.assert_array_equal(rounded[:2], np.rint(exact[:2]))
    np.testing.assert_array_equal(rounded[2:], exact[2:])
    assert (np.asarray(exact) % 1 != 0).all((1, 2, 3)).any()


@pytest.mark.slow
def test_boxes_of_cutmix_are_those_that_the_recipe_drew():
    # Share, row and column of the center -> top, bottom, left, right in 14 x 20 pixels, by timm 0.6.11's rand_bbox.
    for (share, row, column), (top, bottom, left, right) in {
        (0.9, 0, 0): (0, 2, 0, 3),
        (0.9, 13, 19): (11, 14, 16, 20),
        (0.75, 7, 10): (4, 10, 5, 15),
        (0.5, 7, 10): (3, 11, 3, 17),
        (0.5, 2, 17): (0, 6, 10, 20),
        (0.3, 12, 3): (7, 14, 0, 11),
        (0.1, 6, 9): (0, 12, 0, 18),
        (0.97, 5, 5): (4, 6, 4, 6),
        (0.999, 5, 5): (5, 5, 5, 5),
    }.items():
        expected = np.zeros((14, 20), bool)
        expected[top:bottom, left:right] = True
        got = cutmix_box(one_group(share, cut=True, row=row, column=column), 14, 20)[0]
        np.testing.assert_array_equal(got, expected)


def draws(groups=4000, group=1, h=20, w=30, **settings):
    return draw_mix(KEY, (groups * group, h, w, 3), group=group, **settings)


@pytest.mark.slow
def test_mixup_and_cutmix_are_drawn_at_the_switch_rate():
    draw = draws(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.9, switch_prob=0.3, group=2)
    cut, on = np.asarray(draw.cut), np.asarray(draw.share) < 1
    assert not (cut & ~on).any()
    assert abs(on.mean() - 0.9) < 0.02
    assert abs(cut.mean() - 0.9 * 0.3) < 0.03


@pytest.mark.slow
def test_every_group_is_cut_without_mixup_and_none_without_cutmix():
    assert draws(cutmix_alpha=1.0).cut.all()
    assert not draws(mixup_alpha=1.0).cut.any()


@pytest.mark.slow
def test_cutmix_share_is_corrected_to_the_clipped_box():
    draw = draws(cutmix_alpha=1.0, groups=400)
    area = np.asarray(cutmix_box(draw, 20, 30)).sum((1, 2)) / (20 * 30)
    # The partner of an image that is alone in its group is itself: groups of two show the share.
    pairs = Mix(*(value[:200] for value in draw))
    targets = jnp.tile(jnp.eye(2, dtype=jnp.float32), (200, 1))
    _, mixed = mix(jnp.zeros((400, 20, 30, 1)), targets, pairs)
    np.testing.assert_allclose(mixed[::2, 0], 1 - area[:200], rtol=1e-6, atol=1e-7)
    assert (area < 1 - np.asarray(draw.share) - 0.1).any(), "some boxes are clipped"


def test_shares_follow_their_betas_and_centres_are_uniform():
    blended = draws(mixup_alpha=0.8)
    assert stats.kstest(np.asarray(blended.share), stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    cut = draws(cutmix_alpha=1.0)
    assert stats.kstest(np.asarray(cut.share), stats.uniform.cdf).pvalue > 1e-3
    for centre, size in ((cut.row, 20), (cut.column, 30)):
        assert stats.chisquare(np.bincount(np.asarray(centre), minlength=size)).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.optimized
def test_a_compiler_that_fuses_the_sum_moves_next_to_no_rounded_pixel():
    images = jnp.asarray(np.random.default_rng(5).integers(0, 256, (64, 48, 48, 3)), jnp.float32)
    draw = draws(mixup_alpha=0.8, groups=32)
    rounded = functools.partial(mix, round_mixed=True)
    plain, compiled = (f(images, jnp.eye(64), draw)[0] for f in (rounded, jax.jit(rounded)))
    apart = np.abs(np.asarray(plain - compiled))
    assert apart.max() <= 1
    assert apart.mean() < 1e-4


def test_crop_shifts_by_at_most_the_padding():
    pad, x = 2, noise(batch=200)
    padded = np.pad(np.asarray(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = set()
    for image, source in zip(np.asarray(random_crop(x, KEY, pad)), padded, strict=True):
        found = [
            (i, j)
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
            if np.array_equal(image, source[i : i + 6, j : j + 5])
        ]
        assert len(found) == 1
        corners |= set(found)
    assert len(corners) == (2 * pad + 1) ** 2, "every shift occurs"


@pytest.mark.slow
def test_rotation_by_a_quarter_turn_is_exact_and_by_zero_is_nothing():
    x = noise(batch=3, h=6, w=6)
    turned = rotate(x, jnp.asarray([0.0, np.pi / 2, -np.pi / 2], jnp.float32))
    np.testing.assert_allclose(turned[0], x[0], atol=1e-5)
    np.testing.assert_allclose(turned[1], np.rot90(x[1]), atol=1e-4)
    np.testing.assert_allclose(turned[2], np.rot90(x[2], -1), atol=1e-4)


def test_erasing_draws_areas_and_aspects_from_the_recipes_distributions():
    draw = draw_erasure(KEY, 4000, 0.25)
    assert abs(np.asarray(draw.on).mean() - 0.25) < 0.03
    assert draw.area.shape == draw.aspect.shape == (4000, 10)
    limit = np.log(1 / 0.3)
    for values, law in (
        (draw.area, stats.uniform(0.02, 1 / 3 - 0.02)),
        (draw.aspect, stats.uniform(-limit, 2 * limit)),
        (draw.top, stats.uniform),
        (draw.left, stats.uniform),
    ):
        assert stats.kstest(np.asarray(values).ravel(), law.cdf).pvalue > 1e-3


def erased(draw, h, w):
    """Mark the pixels that a draw erases."""
    shape = (len(draw.on), h, w, 1)
    return np.asarray(erase(jnp.zeros(shape), jnp.ones(shape), draw))[..., 0] == 1


@pytest.mark.slow
def test_a_rectangle_is_smaller_than_the_image():
    wide = Erasure(*(jnp.asarray(value) for value in ([True], [[0.3, 0.3]], [[3.0, 1.0]], [0.5], [0.5])))
    box = erased(wide, 16, 64)[0]
    rows, columns = box.any(1), box.any(0)
    assert box.sum() == rows.sum() * columns.sum()
    # The first attempt is 78 pixels high; the second is sqrt(0.3 * 16 * 64 * e) = 29, too high as well.
    assert not box.any()
    assert erased(wide._replace(aspect=jnp.asarray([[3.0, -1.0]])), 16, 64)[0].sum() == 11 * 29


@pytest.mark.slow
def test_rectangles_reach_every_border():
    draw = draw_erasure(KEY, 2000, 1.0)._replace(area=jnp.full((2000, 10), 0.1), aspect=jnp.zeros((2000, 10)))
    boxes = erased(draw, 16, 16)
    for edge in (boxes[:, 0], boxes[:, -1], boxes[:, :, 0], boxes[:, :, -1]):
        # A side of 5 pixels has 12 places.
        assert abs(edge.any(1).mean() - 1 / 12) < 0.03


@pytest.mark.slow
def test_erasing_follows_mixing_and_normalisation_and_leaves_targets():
    images = jnp.asarray(np.random.default_rng(2).integers(0, 256, (128, 24, 24, 3), np.uint8))
    settings = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, mixup_prob=1.0, mixup_group=4, label_smoothing=0.1)
    (mixed, targets), (x, erased_targets) = (
        augment(
            images,
            jnp.arange(128) % 10,
            KEY,
            settings._replace(random_erasing_prob=rate),
            num_classes=10,
            mean=(0.4, 0.5, 0.6),
            std=(0.1, 0.2, 0.3),
        )
        for rate in (0.0, 1.0)
    )
    np.testing.assert_array_equal(erased_targets, targets)
    box = np.asarray(x != mixed).any(-1)
    assert box.any((1, 2)).all()
    for one in box:
        assert one.sum() == one.any(1).sum() * one.any(0).sum(), "what is not mixed is one rectangle"
    values = np.asarray(x)[box]
    for channel in range(3):
        assert stats.kstest(values[:, channel], stats.norm.cdf).pvalue > 1e-3
    assert len(np.unique(values)) > 0.99 * values.size, "every pixel has noise of its own"


def test_augment_without_settings_only_normalises():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))
    x, targets = augment(images, jnp.arange(4), KEY, Augmentation(), num_classes=5, mean=(0.5,), std=(0.5,))
    np.testing.assert_array_equal(x, normalize_images(images, (0.5,), (0.5,)))
    np.testing.assert_array_equal(targets, jnp.eye(5)[:4])
