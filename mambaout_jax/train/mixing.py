"""What happens to a batch on the device, under jit: crop, rotate, mix, normalise, erase.

Each operation is split in two: what is drawn, and what is done with the draw, which is a plain formula.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mambaout_jax.train.losses import smooth_one_hot


class Augmentation(NamedTuple):
    """Hold the settings; the names and meanings are those of `config.augment`."""

    pad: int = 0
    rotate_degrees: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_rate: float = 0.0
    switch_rate: float = 0.5
    mixup_group: int = 1
    erase_rate: float = 0.0
    label_smoothing: float = 0.0

    @property
    def mixes(self) -> bool:
        """Tell whether images are mixed at all."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def augment(
    images: UInt8[Array, "b h w c"],
    labels: Int[Array, "b"],
    key: Key[Array, ""],
    settings: Augmentation,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Turn a batch of bytes into what the model trains on: normalised images and soft targets."""
    crop_key, rotate_key, mix_key, erase_key = jax.random.split(key, 4)
    x = images.astype(jnp.float32)
    targets = smooth_one_hot(labels, num_classes, settings.label_smoothing)
    if settings.pad:
        x = random_crop(x, crop_key, settings.pad)
    if settings.rotate_degrees:
        limit = jnp.deg2rad(settings.rotate_degrees)
        x = rotate(x, jax.random.uniform(rotate_key, x.shape[:1], minval=-limit, maxval=limit))
    if settings.mixes:
        x, targets = mix(x, targets, draw_mix(mix_key, x.shape, settings), settings.mixup_group)
    x = normalize(x, mean, std)
    if settings.erase_rate:
        x = random_erase(x, erase_key, settings.erase_rate)
    return x, targets


def normalize(
    images: Float[Array, "b h w c"] | UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w c"]:
    """Compute (x / 255 - mean) / std of pixels in 0..255."""
    mean, std = (255.0 * jnp.asarray(value).reshape(1, 1, 1, -1) for value in (mean, std))
    return (images.astype(jnp.float32) - mean) / std


def random_crop(x: Float[Array, "b h w c"], key: Key[Array, ""], pad: int) -> Float[Array, "b h w c"]:
    """Shift each image by -pad to pad pixels along both axes and fill with zeros."""
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (x.shape[0], 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:]))(padded, corners)


def rotate(x: Float[Array, "b h w c"], angles: Float[Array, "b"]) -> Float[Array, "b h w c"]:
    """Turn each image about its centre, bilinearly, and fill with zeros.

    Args:
        angles: in radians, counter-clockwise as seen on the screen.
    """
    h, w = x.shape[1:3]
    rows, columns = jnp.mgrid[:h, :w].astype(jnp.float32)
    rows, columns = rows - (h - 1) / 2, columns - (w - 1) / 2

    def turn(image: Float[Array, "h w c"], angle: Float[Array, ""]) -> Float[Array, "h w c"]:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        source = [
            cosine * rows + sine * columns + (h - 1) / 2,
            cosine * columns - sine * rows + (w - 1) / 2,
        ]
        return jax.vmap(lambda plane: map_coordinates(plane, source, order=1), in_axes=-1, out_axes=-1)(image)

    return jax.vmap(turn)(x, angles)


class Mix(NamedTuple):
    """Hold one draw for each group: the share that an image keeps of itself, and the box that it gives away.

    Mixup has an empty box; cutmix has `share` 1 outside its box, and `label_share` corrected to the clipped area.
    """

    share: Float[Array, "g"]
    label_share: Float[Array, "g"]
    box: Bool[Array, "g h w"]


def draw_mix(key: Key[Array, ""], shape: tuple[int, int, int, int], settings: Augmentation) -> Mix:
    """Draw mixup or cutmix for each group of `settings.mixup_group` consecutive images.

    References: Zhang et al., mixup, 2018; Yun et al., CutMix, 2019: sides sqrt(1 - share) of the image's, centre
    uniform, clipped to the image.
    """
    batch, h, w, _ = shape
    groups = batch // settings.mixup_group
    on_key, switch_key, mixup_key, cutmix_key, row_key, column_key = jax.random.split(key, 6)
    on = jax.random.bernoulli(on_key, settings.mix_rate, (groups,))
    rate = settings.switch_rate if settings.mixup_alpha else 1.0
    cut = on & jax.random.bernoulli(switch_key, rate if settings.cutmix_alpha else 0.0, (groups,))
    # A Beta of alpha 0 is not defined; the branch that it would serve is never taken.
    mixup_share = jax.random.beta(mixup_key, *[settings.mixup_alpha or 1.0] * 2, (groups,))
    cutmix_share = jax.random.beta(cutmix_key, *[settings.cutmix_alpha or 1.0] * 2, (groups,))
    side = jnp.sqrt(1.0 - cutmix_share)
    inside = _interval(row_key, side, h)[:, :, None] & _interval(column_key, side, w)[:, None, :]
    box = inside & cut[:, None, None]
    share = jnp.where(on & ~cut, mixup_share, 1.0)
    return Mix(share, share - box.mean((1, 2)), box)


def _interval(key: Key[Array, ""], side: Float[Array, "g"], size: int) -> Bool[Array, "g size"]:
    length = jnp.floor(side * size)[:, None]
    centre = jax.random.randint(key, (*side.shape, 1), 0, size)
    start, stop = centre - length // 2, centre + length // 2
    at = jnp.arange(size)[None]
    return (at >= start) & (at < stop)


def mix(
    x: Float[Array, "b h w c"], targets: Float[Array, "b k"], draw: Mix, group: int
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mix image i of a group with image group - 1 - i of it, and their targets by the same shares.

    The pixels stay floats; timm mixes bytes on the host and rounds them.
    """

    def partner(value: Array) -> tuple[Array, Array]:
        grouped = value.reshape(-1, group, *value.shape[1:])
        return grouped, grouped[:, ::-1]

    own, other = partner(x)
    share = draw.share[:, None, None, None, None]
    mixed = jnp.where(draw.box[:, None, :, :, None], other, share * own + (1.0 - share) * other)
    own_target, other_target = partner(targets)
    share = draw.label_share[:, None, None]
    mixed_targets = share * own_target + (1.0 - share) * other_target
    return mixed.reshape(x.shape), mixed_targets.reshape(targets.shape)


def random_erase(x: Float[Array, "b h w c"], key: Key[Array, ""], rate: float) -> Float[Array, "b h w c"]:
    """Replace a rectangle of an image by N(0, 1) noise with probability `rate`.

    Area U(0.02, 1/3) of the image, aspect log-uniform in (0.3, 1/0.3), up to 10 attempts at a rectangle that is
    smaller than the image. Reference: Zhong et al., Random Erasing Data Augmentation, 2020, with timm 0.6.11's numbers.
    """
    batch, h, w, _ = x.shape
    attempts = 10
    on_key, area_key, aspect_key, row_key, column_key, noise_key = jax.random.split(key, 6)
    area = jax.random.uniform(area_key, (batch, attempts), minval=0.02, maxval=1 / 3) * (h * w)
    limit = jnp.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (batch, attempts), minval=-limit, maxval=limit))
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < h) & (widths < w)
    first = jnp.argmax(fits, axis=1)[:, None]
    height, width = (jnp.take_along_axis(side, first, axis=1) for side in (heights, widths))
    on = jax.random.bernoulli(on_key, rate, (batch,)) & fits.any(1)

    def interval(key: Key[Array, ""], length: Float[Array, "b 1"], size: int) -> Bool[Array, "b size"]:
        start = jnp.floor(jax.random.uniform(key, (batch, 1)) * (size - length + 1))
        at = jnp.arange(size)[None]
        return (at >= start) & (at < start + length)

    box = interval(row_key, height, h)[:, :, None] & interval(column_key, width, w)[:, None, :]
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    return jnp.where((box & on[:, None, None])[..., None], noise, x)
