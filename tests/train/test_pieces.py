"""The pieces of training work alone, without a run, a config or a mesh."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.data import RandAugment, TrainTransform, randaugment, train_batches
from mambaout_jax.tasks.classification.losses import cross_entropy, smooth_one_hot
from mambaout_jax.tasks.classification.mixing import Augmentation, augment, draw_erasure, draw_mix, erase, mix
from mambaout_jax.train import adamw, decay_mask, update_ema, warmup_cosine

KEY = jax.random.key(0)


class Pictures:
    """Images in memory; picture i has the gray level 10 i."""

    name, split, fingerprint, labels = "pictures", "train", "1", {}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (10 * index,) * 3).save(file, "PNG")
        return {"image": file.getvalue(), "label": index}


class Example:
    """The transform of a picture and its label."""

    image = TrainTransform((32, 32))

    def __call__(self, record, rng):
        return {"image": self.image(record["image"], rng), "label": np.int32(record["label"])}

    def empty(self):
        return {"image": self.image.empty(), "label": np.int32(0)}


def test_schedule_takes_a_step_and_is_one_of_optax():
    schedule = warmup_cosine(learning_rate=1.0, num_epochs=10, steps_per_epoch=4, warmup_epochs=2)
    np.testing.assert_allclose(schedule(jnp.arange(0, 41, 8)), [0, *(np.cos(np.pi * np.arange(2, 11, 2) / 10) + 1) / 2])
    update = optax.sgd(schedule)
    _, state = update.update({"w": jnp.ones(2)}, update.init({"w": jnp.ones(2)}))
    assert jax.tree.leaves(state)


def test_decay_mask_has_a_bool_for_each_parameter():
    model = mo.create_model("test_mambaout")
    mask = decay_mask(model.shapes["params"], model.no_decay)
    assert jax.tree.structure(mask) == jax.tree.structure(model.shapes["params"])
    assert mask["stem"]["conv1"] == {"weight": True, "bias": False}


@pytest.mark.parametrize("step", [0, 5, 10**6])
def test_average_moves_by_the_smaller_decay(step):
    decay = min(0.999, (1 + step) / (10 + step))
    found = update_ema({"w": jnp.ones(3)}, {"w": jnp.zeros(3)}, 0.999, step)
    np.testing.assert_allclose(found["w"], np.full(3, decay), rtol=1e-5)


@pytest.mark.slow
def test_mixed_images_and_targets_have_the_same_shares():
    images, targets = jnp.repeat(jnp.arange(6.0), 8 * 8).reshape(6, 8, 8, 1), jnp.eye(6)
    draw = draw_mix(KEY, images.shape, group=2, mixup_alpha=0.8, cutmix_alpha=1.0)
    mixed, mixed_targets = mix(images, targets, draw)
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), mixed_targets @ jnp.arange(6.0), rtol=1e-5)


@pytest.mark.slow
def test_erased_pixels_are_noise_in_one_rectangle():
    noise = jax.random.normal(KEY, (16, 24, 24, 3))
    erased = np.asarray(erase(jnp.zeros_like(noise), noise, draw_erasure(KEY, 16, 1.0)))
    for image, of in zip(erased, np.asarray(noise), strict=True):
        rows, columns = (np.flatnonzero(image.any((axis, 2))) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(image[box], of[box])
        assert np.count_nonzero(image) == image[box].size


@pytest.mark.parametrize("affine", [randaugment.affine_pillow, randaugment.affine_opencv])
def test_rand_augment_applies_what_it_draws(affine):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    for seed in range(8):
        expected = image
        for operation in policy.draw(np.random.default_rng(seed)):
            expected = randaugment.apply(expected, operation, affine)
        np.testing.assert_array_equal(policy(image, np.random.default_rng(seed), affine), expected)


def test_batches_of_images_in_memory_have_each_image_once_per_epoch_from_any_step():
    batches = itertools.islice(train_batches(Pictures(), Example(), batch_size=4, steps_per_epoch=2, seed=0), 4)
    batches = list(batches)
    for epoch in (batches[:2], batches[2:]):
        assert sorted(np.concatenate([batch["label"] for batch in epoch]).tolist()) == list(range(8))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 10 * batch["label"])
    resumed = next(train_batches(Pictures(), Example(), batch_size=4, steps_per_epoch=2, seed=0, start_step=3))
    np.testing.assert_array_equal(resumed["image"], batches[3]["image"])


@pytest.mark.slow
def test_the_pieces_make_a_training_loop():
    model = mo.create_model("mambaout_femto", depths=(1, 1), dims=(8, 16), num_classes=8, img_size=32)
    variables = ema = model.init(KEY)
    schedule = warmup_cosine(learning_rate=1e-2, num_epochs=4, steps_per_epoch=2, warmup_epochs=1)
    optimizer = adamw(schedule, weight_decay=0.05, clip_grad_norm=5.0, no_decay=model.no_decay)
    state = optimizer.init(variables["params"])
    spec, settings = model.input_spec, Augmentation(mixup_alpha=0.8, mixup_prob=0.5, mixup_group=4)

    def loss(params, images, targets, key):
        logits, stats = model.apply_train({**variables, "params": params}, images, key=key)
        return cross_entropy(logits, targets).mean(), stats

    @jax.jit
    def train_step(variables, ema, state, batch, step):
        keys = jax.random.split(jax.random.fold_in(KEY, step))
        images, targets = augment(
            batch["image"], batch["label"], keys[0], settings, num_classes=8, mean=spec.mean, std=spec.std
        )
        (value, stats), grad = jax.value_and_grad(loss, has_aux=True)(variables["params"], images, targets, keys[1])
        updates, state = optimizer.update(grad, state, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}
        return variables, update_ema(ema, variables, 0.999, step), state, value

    batches = train_batches(Pictures(), Example(), batch_size=4, steps_per_epoch=2, seed=0)
    for step, batch in zip(range(3), batches, strict=False):
        batch = {name: jnp.asarray(batch[name]) for name in ("image", "label")}
        variables, ema, state, value = train_step(variables, ema, state, batch, step)
        assert jnp.isfinite(value)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), variables, ema)
    assert max(jax.tree.leaves(moved)) > 0
    assert smooth_one_hot(jnp.arange(2), 2, 0.0).tolist() == [[1, 0], [0, 1]]
