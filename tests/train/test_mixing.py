import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from mambaout_jax.train.losses import cross_entropy, smooth_one_hot
from mambaout_jax.train.mixing import (
    Augmentation,
    Mix,
    augment,
    draw_mix,
    mix,
    normalize,
    random_crop,
    random_erase,
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


def test_normalize_is_the_recipes_formula():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    got = normalize(jnp.asarray(images), tuple(mean), tuple(std))
    np.testing.assert_allclose(got, (images - 255 * mean) / (255 * std), rtol=1e-4, atol=1e-5)


def test_a_batch_is_mixed_as_the_formula_says():
    x, targets = noise(batch=6), jnp.eye(6, dtype=jnp.float32)
    box = np.zeros((2, 6, 5), bool)
    box[1, 1:4, 2:5] = True
    draw = Mix(jnp.asarray([0.3, 1.0]), jnp.asarray([0.3, 1 - 9 / 30]), jnp.asarray(box))
    mixed, mixed_targets = mix(x, targets, draw, group=3)
    flipped = [2, 1, 0, 5, 4, 3]  # inside each group of three
    for i in range(6):
        lam = (0.3, 0.7)[i // 3]
        if i < 3:
            expected = 0.3 * x[i] + 0.7 * x[flipped[i]]
        else:
            expected = jnp.where(jnp.asarray(box[1])[:, :, None], x[flipped[i]], x[i])
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed_targets[i], lam * targets[i] + (1 - lam) * targets[flipped[i]], rtol=1e-5)


def draws(settings, groups=4000, h=20, w=30):
    return draw_mix(KEY, (groups * settings.mixup_group, h, w, 3), settings)


def test_mixup_and_cutmix_are_drawn_at_the_switch_rate():
    draw = draws(Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0, mix_rate=0.9, switch_rate=0.3, mixup_group=2))
    cut, blended = np.asarray(draw.box).any((1, 2)), np.asarray(draw.share) < 1
    assert not (cut & blended).any(), "a group is mixed one way"
    assert abs(blended.mean() - 0.9 * 0.7) < 0.03
    # A box may be empty: its side is floored.
    assert 0.9 * 0.3 - 0.06 < cut.mean() < 0.9 * 0.3 + 0.03


def test_cutmix_share_is_corrected_to_the_clipped_box():
    draw = draws(Augmentation(cutmix_alpha=1.0, mix_rate=1.0, mixup_group=1))
    area = np.asarray(draw.box).sum((1, 2)) / (20 * 30)
    np.testing.assert_allclose(draw.label_share, 1 - area, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(draw.share, 1.0)
    for box in np.asarray(draw.box)[:200]:
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None, :])
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2, "one rectangle"


def test_mixup_share_follows_its_beta():
    draw = draws(Augmentation(mixup_alpha=0.8, mix_rate=1.0, mixup_group=1))
    assert stats.kstest(np.asarray(draw.share), stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(draw.share, draw.label_share)


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


def test_rotation_by_a_quarter_turn_is_exact_and_by_zero_is_nothing():
    x = noise(batch=3, h=6, w=6)
    turned = rotate(x, jnp.asarray([0.0, np.pi / 2, -np.pi / 2], jnp.float32))
    np.testing.assert_allclose(turned[0], x[0], atol=1e-5)
    np.testing.assert_allclose(turned[1], np.rot90(x[1]), atol=1e-4)
    np.testing.assert_allclose(turned[2], np.rot90(x[2], -1), atol=1e-4)


def test_erasing_draws_the_recipes_rectangles():
    h, w = 64, 48
    erased = np.asarray(random_erase(jnp.zeros((2000, h, w, 1)), KEY, rate=0.25))[..., 0] != 0
    hit = erased.any((1, 2))
    assert abs(hit.mean() - 0.25) < 0.03
    area = erased[hit].sum((1, 2)) / (h * w)
    assert 0.02 * 0.9 < area.min() < 0.04
    assert 0.28 < area.max() < 1 / 3 * 1.05
    for box in erased[hit][:200]:
        rows, columns = box.any(1), box.any(0)
        assert box.sum() == rows.sum() * columns.sum(), "a full rectangle of noise"
        assert rows.sum() < h
        assert columns.sum() < w
        assert 0.25 < rows.sum() / columns.sum() < 4


def test_erasing_leaves_the_rest_untouched():
    x = noise(batch=50, h=16, w=16)
    out = random_erase(x, KEY, rate=1.0)
    changed = np.asarray(out != x).any(-1).mean((1, 2))
    assert (changed > 0).all()
    assert (changed < 0.5).all()


def test_augment_without_settings_only_normalises():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))
    x, targets = augment(images, jnp.arange(4), KEY, Augmentation(), num_classes=5, mean=(0.5,), std=(0.5,))
    np.testing.assert_array_equal(x, normalize(images, (0.5,), (0.5,)))
    np.testing.assert_array_equal(targets, jnp.eye(5)[:4])


def test_noise_of_erasing_is_neither_mixed_nor_normalised():
    images = jnp.zeros((64, 32, 32, 1), jnp.uint8)
    settings = Augmentation(mixup_alpha=1.0, mix_rate=1.0, mixup_group=4, erase_rate=1.0)
    x, _ = augment(images, jnp.zeros(64, jnp.int32), KEY, settings, num_classes=2, mean=(0.5,), std=(0.1,))
    values = np.asarray(x)
    erased = values[values != values.flat[np.argmin(values)]]
    assert abs(erased.std() - 1.0) < 0.05
    assert abs(erased.mean()) < 0.05
