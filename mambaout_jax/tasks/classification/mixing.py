"""Augmentation of a batch on the device, under jit: crop, rotate, mix, normalize, erase.

Mixing and erasing have two functions each: one draws the random numbers, one applies them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mambaout_jax import distributed
from mambaout_jax.ops import normalize_images
from mambaout_jax.tasks.classification.losses import smooth_one_hot


class Augmentation(NamedTuple):
    """The settings of `config.augment`, under the same names.

    Args:
        round_mixed: round the pixels of mixup, as timm does because it mixes uint8 images.
    """

    pad: int = 0
    rotate_degrees: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mixup_prob: float = 0.0
    mixup_switch_prob: float = 0.5
    mixup_group: int = 1
    random_erasing_prob: float = 0.0
    label_smoothing: float = 0.0
    round_mixed: bool = False

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is enabled."""
        return self.mixup_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


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
    """Compute the training batch, normalized images and soft targets, from uint8 images and labels.

    Args:
        mean, std: of the channels, for values in [0, 1].
    """
    crop_key, rotate_key, mix_key, erase_key = jax.random.split(key, 4)
    x = images.astype(jnp.float32)
    targets = smooth_one_hot(labels, num_classes, settings.label_smoothing)
    if settings.pad:
        x = random_crop(x, crop_key, settings.pad)
    if settings.rotate_degrees:
        limit = jnp.deg2rad(settings.rotate_degrees)
        x = rotate(x, jax.random.uniform(rotate_key, x.shape[:1], minval=-limit, maxval=limit))
    if settings.mixes:
        draw = draw_mix(
            mix_key,
            x.shape,
            group=settings.mixup_group,
            mixup_alpha=settings.mixup_alpha,
            cutmix_alpha=settings.cutmix_alpha,
            prob=settings.mixup_prob,
            switch_prob=settings.mixup_switch_prob,
        )
        x, targets = mix(x, targets, draw, round_mixed=settings.round_mixed)
    x = normalize_images(x, mean, std)
    if settings.random_erasing_prob:
        draw_key, noise_key = jax.random.split(erase_key)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        x = erase(x, noise, draw_erasure(draw_key, len(x), settings.random_erasing_prob))
    return x, targets


def random_crop(x: Float[Array, "b h w c"], key: Key[Array, ""], pad: int) -> Float[Array, "b h w c"]:
    """Crop each image at random after padding it with `pad` pixels of zeros on all sides."""
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (x.shape[0], 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:]))(padded, corners)


def rotate(x: Float[Array, "b h w c"], angles: Float[Array, "b"]) -> Float[Array, "b h w c"]:
    """Rotate each image about its center with bilinear interpolation and zero fill.

    Args:
        angles: in radians, counter-clockwise on the screen.
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
    """The random numbers of mixup and cutmix, one set per group.

    `share` is lambda of the papers, the weight of an image's own pixels; cutmix derives the size of its box from it. A
    value of 1 leaves the group unchanged.
    """

    cut: Bool[Array, "g"]
    share: Float[Array, "g"]
    row: Int[Array, "g"]
    column: Int[Array, "g"]


def draw_mix(
    key: Key[Array, ""],
    shape: tuple[int, int, int, int],
    *,
    group: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> Mix:
    """Draw mixup or cutmix for each group of consecutive images.

    Args:
        shape: (b, h, w, c) of the images.
        group: number of images that share a draw and are mixed with each other; divides b.
        mixup_alpha, cutmix_alpha: the weight is drawn from Beta(alpha, alpha); 0 for no mixup or no cutmix.
        prob: probability that a group is mixed.
        switch_prob: probability of cutmix, if both are on.

    References: Zhang et al., mixup, 2018; Yun et al., CutMix, 2019: the center of a box is uniform over the image.
    """
    batch, h, w, _ = shape
    groups = (batch // group,)
    on_key, switch_key, mixup_key, cutmix_key, row_key, column_key = jax.random.split(key, 6)
    on = jax.random.bernoulli(on_key, prob, groups)
    rate = switch_prob if mixup_alpha else 1.0
    cut = on & jax.random.bernoulli(switch_key, rate if cutmix_alpha else 0.0, groups)
    # Beta(0, 0) is undefined; alpha 0 is replaced by 1, and that branch is never used.
    mixup_share, cutmix_share = (
        distributed.replicate(jax.random.beta(key, alpha or 1.0, alpha or 1.0, groups))
        for key, alpha in ((mixup_key, mixup_alpha), (cutmix_key, cutmix_alpha))
    )
    return Mix(
        cut=cut,
        share=jnp.where(on, jnp.where(cut, cutmix_share, mixup_share), 1.0),
        row=jax.random.randint(row_key, groups, 0, h),
        column=jax.random.randint(column_key, groups, 0, w),
    )


def cutmix_box(draw: Mix, h: int, w: int) -> Bool[Array, "g h w"]:
    """Return the mask of the pixels that cutmix takes from the partner image; it is empty for mixup.

    The sides of the box are sqrt(1 - share) of the image's, clipped to the image.

    Reference: timm 0.6.11, rand_bbox: half a side, rounded down, on either side of the center. An odd side thus loses
    a pixel, which later versions of timm keep.
    """
    side = jnp.sqrt(1.0 - draw.share)

    def interval(center: Int[Array, "g"], size: int) -> Bool[Array, "g size"]:
        half = jnp.floor(side * size)[:, None] // 2
        at = jnp.arange(size)[None] - center[:, None]
        return (at >= -half) & (at < half)

    box = interval(draw.row, h)[:, :, None] & interval(draw.column, w)[:, None, :]
    return box & draw.cut[:, None, None]


def mix(
    x: Float[Array, "b h w c"], targets: Float[Array, "b k"], draw: Mix, *, round_mixed: bool = False
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mix image i of each group with image group - 1 - i, and their targets with the same weights.

    The weight of cutmix's targets is the share of the image outside the box.

    Args:
        draw: of `draw_mix`; its number of groups divides b.
        round_mixed: round the pixels of mixup.
    """
    h, w = x.shape[1:3]
    box = cutmix_box(draw, h, w)

    def partner(value: Array) -> tuple[Array, Array]:
        grouped = value.reshape(len(draw.cut), -1, *value.shape[1:])
        return grouped, grouped[:, ::-1]

    own, other = partner(x)
    share = draw.share[:, None, None, None, None]
    blended = share * own + (1.0 - share) * other
    if round_mixed:
        blended = jnp.round(blended)
    untouched = (draw.cut | (draw.share == 1.0))[:, None, None, None, None]
    mixed = jnp.where(box[:, None, :, :, None], other, jnp.where(untouched, own, blended))
    own_target, other_target = partner(targets)
    share = jnp.where(draw.cut, (h * w - box.sum((1, 2))) / (h * w), draw.share)[:, None, None]
    mixed_targets = share * own_target + (1.0 - share) * other_target
    return mixed.reshape(x.shape), mixed_targets.reshape(targets.shape)


class Erasure(NamedTuple):
    """The random numbers of random erasing for each image: whether to erase, and candidate rectangles.

    `area` is a share of the image and `aspect` the log of height over width. `top` and `left` are the position of the
    rectangle, from 0 for the first possible one up to 1 (exclusive) for the last.
    """

    on: Bool[Array, "b"]
    area: Float[Array, "b attempts"]
    aspect: Float[Array, "b attempts"]
    top: Float[Array, "b"]
    left: Float[Array, "b"]


def draw_erasure(key: Key[Array, ""], batch: int, rate: float) -> Erasure:
    """Draw random rectangles for random erasing.

    Areas are U(0.02, 1/3) of the image, aspect ratios log-uniform in (0.3, 1/0.3); 10 attempts.

    Args:
        batch: number of images.
        rate: probability that an image is erased.

    Reference: Zhong et al., Random Erasing Data Augmentation, 2020, with the constants of timm 0.6.11.
    """
    on_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    limit = jnp.log(1 / 0.3)
    return Erasure(
        on=jax.random.bernoulli(on_key, rate, (batch,)),
        area=jax.random.uniform(area_key, (batch, 10), minval=0.02, maxval=1 / 3),
        aspect=jax.random.uniform(aspect_key, (batch, 10), minval=-limit, maxval=limit),
        top=jax.random.uniform(top_key, (batch,)),
        left=jax.random.uniform(left_key, (batch,)),
    )


def erase(x: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], draw: Erasure) -> Float[Array, "b h w c"]:
    """Replace the first rectangle that fits into the image, if any, with noise.

    Args:
        x: normalized images.
        noise: standard normal, as in timm's mode "pixel".
        draw: of `draw_erasure`.
    """
    h, w = x.shape[1:3]
    area, aspect = draw.area * (h * w), jnp.exp(draw.aspect)
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < h) & (widths < w)
    first = jnp.argmax(fits, axis=1)[:, None]

    def interval(lengths: Float[Array, "b attempts"], place: Float[Array, "b"], size: int) -> Bool[Array, "b size"]:
        length = jnp.take_along_axis(lengths, first, axis=1)
        start = jnp.floor(place[:, None] * (size - length + 1))
        at = jnp.arange(size)[None]
        return (at >= start) & (at < start + length)

    box = interval(heights, draw.top, h)[:, :, None] & interval(widths, draw.left, w)[:, None, :]
    box &= (draw.on & fits.any(1))[:, None, None]
    return jnp.where(box[..., None], noise, x)
