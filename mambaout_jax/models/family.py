"""Families of models: modules, named variants, key formats and published recipes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from flax import nnx

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.key_format import KeyFormat

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def head_modules(module: nnx.Module) -> tuple[str, ...]:
    """Return the attributes of a module that only its embedding and its logits use, not its feature maps.

    They are the class attribute `head_modules`, or else the attribute that has the last layer.
    """
    return tuple(getattr(module, "head_modules", module.classifier[:1]))


@dataclass(frozen=True)
class Checkpoint:
    """A published file of PyTorch weights.

    Args:
        url: address of the file.
        license: SPDX name of the license of the weights; None if none is stated.
        sha256: digest of the file in hexadecimal, or the beginning of it that is published; None if none is.
        entry: entry of the file that has the weights of the published accuracy; None for the one that is read by
            default, which is the moving average if there is one.
    """

    url: str
    license: str | None
    sha256: str | None = None
    entry: str | None = None


@dataclass(frozen=True)
class Publication:
    """The paper and the original code of a family.

    Args:
        title: title of the paper.
        paper: address of the paper.
        repository: address of the original code.
        license: SPDX name of the license of the original code.
        bibtex: entry of a bibliography, as its authors give it.
    """

    title: str
    paper: str
    repository: str
    license: str
    bibtex: str


@dataclass(frozen=True)
class Variant:
    """A named model of a family.

    Args:
        options: keyword arguments of the family's module that the variant sets.
        size: side of the training images, in pixels.
        mean, std: statistics of the training images for R, G and B, in [0, 1].
        crop_pct: share of the resized image that the evaluation crop keeps.
        crop_mode: how the evaluation crop is taken, one of the values of the option.
        top1: published ImageNet-1k top-1 in percent, by side of the evaluation image.
        params: number of parameters; None to count them where they are listed.
        macs: multiply-adds for one image of `size`, as `models.macs` counts them; None to count them.
        checkpoint: the published weights; None if there are none.
        recipe: values of the published training recipe that differ from those of the family, by dotted config key; None
            if it was trained in another way.
    """

    options: Mapping[str, Any]
    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 1.0
    crop_mode: str = "center"
    top1: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    params: int | None = None
    macs: int | None = None
    checkpoint: Checkpoint | None = None
    recipe: Mapping[str, Any] | None = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Recipe:
    """The training recipe that a family was published with.

    Args:
        dataset: TFDS name of the dataset that it was published for.
        values: values by dotted config key; a run with another value logs the difference.
        reference: source of the values.
    """

    dataset: str
    values: Mapping[str, Any]
    reference: str


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models: everything that the rest of the program depends on.

    Args:
        name: name of the family.
        module: the module class, or a function that builds the module, which takes every option as a keyword argument.
            It has the methods `features`, `embed` and `logits` of (images, key); docs/extending.md lists its
            attributes.
        options: by name, `models.options.COMMON` included; a default is that of the variants that do not set it.
        variants: by the name that `create_model` takes. Weights without a name are taken for the first of several
            variants with the same shapes, options and preprocessing.
        key_formats: names of its parameters in PyTorch programs; the first is the default for export.
        timm_options: options with only one value in timm; None if timm does not have the family.
        recipe: of the variants that do not change it (`recipe_of`); None if none is published.
        publication: None for a family without a paper.
        backbone: the family of the backbones of models with a head; None for other models.
        output_norms: pattern of the names of the norms of the feature maps, in published models with a head.
    """

    name: str
    module: Callable[..., nnx.Module]
    options: Mapping[str, ConfigKey]
    variants: Mapping[str, Variant]
    key_formats: tuple[KeyFormat, ...]
    timm_options: Mapping[str, Any] | None = None
    recipe: Recipe | None = None
    publication: Publication | None = None
    backbone: "Family | None" = None
    output_norms: str = "norm#"

    def variant_options(self, name: str) -> dict[str, Any]:
        """Return every option of a variant with its value."""
        variant = self.variants[name]
        options = {option: key.default for option, key in self.options.items()} | dict(variant.options)
        return options | ({"img_size": (variant.size, variant.size)} if "img_size" in options else {})

    def recipe_of(self, variant: str) -> Recipe | None:
        """Return the published recipe of a variant; None if there is none."""
        changed = self.variants[variant].recipe
        if self.recipe is None or changed is None:
            return None
        return replace(self.recipe, values={**self.recipe.values, **changed})
