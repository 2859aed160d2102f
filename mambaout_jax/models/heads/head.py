"""Heads, and the families of models that they form with the backbones of other families."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import nnx

from mambaout_jax.checks import ConfigKey
from mambaout_jax.models.family import Family, Variant, head_modules
from mambaout_jax.models.key_format import KeyFormat, Rule, batch_counters

_PREFIX = "backbone."


@dataclass(frozen=True, eq=False)
class Head:
    """A network that takes the backbone of any family.

    Args:
        name: name of the head; its models are called NAME_BACKBONE.
        module: the module class. It takes the backbone, every option as a keyword argument, and `dtype`.
        options: by name. All other options of its models are those of the backbone.
        rules: key format of everything but the backbone, whose keys begin with "backbone.", and `norms`, the norms of
            its feature maps.
        key_format: name of the codebase that the rules come from.
        num_maps: number of feature maps that it reads.
        size: side of the training images, in pixels.
    """

    name: str
    module: Callable[..., nnx.Module]
    options: Mapping[str, ConfigKey]
    rules: tuple[Rule, ...]
    key_format: str
    num_maps: int
    size: int


@functools.cache
def compose(head: Head, family: Family) -> Family:
    """Return the family of the models of a head on the backbones of a family."""
    return Family(
        name=f"{head.name}_{family.name}",
        module=_Builder(head, family),
        options=MappingProxyType({**family.options, **_out_indices(head, family), **head.options}),
        variants=MappingProxyType(
            {f"{head.name}_{name}": _compose_variant(head, family, name) for name in family.variants}
        ),
        key_formats=tuple(_compose_format(head, family, key_format) for key_format in family.key_formats),
        backbone=family,
    )


# What of a backbone is a property of its classifier; models with a head have their own options of these names.
CLASSIFIER_OPTIONS = MappingProxyType({"num_classes": 1, "drop_rate": 0.0})


def _out_indices(head: Head, family: Family) -> dict[str, ConfigKey]:
    """Return the option of plain backbones, which have maps of any block, with its meaning here."""
    help_text = (
        f"blocks of the {head.num_maps} feature maps; if unset, the last block of each part of the depth, which is "
        "divided into as many equal parts"
    )
    found = {name: key for name, key in family.options.items() if name == "out_indices"}
    return {name: key._replace(help=help_text, inference="value") for name, key in found.items()}


class _Builder:
    """The module of a composed family: a function from its options to a head with its backbone."""

    def __init__(self, head: Head, family: Family):
        self._head, self._family = head, family
        self.__name__ = f"{head.module.__name__} on {family.module.__name__}"

    def __call__(self, **options: Any) -> nnx.Module:
        of_backbone = {name: options[name] for name in self._family.options} | CLASSIFIER_OPTIONS
        backbone = self._family.module(**of_backbone)
        if of_backbone.get("out_indices", ()) is None:
            backbone = self._family.module(
                **of_backbone | {"out_indices": self._blocks_of_maps(backbone.out_indices[-1] + 1)}
            )
        for name in head_modules(backbone):
            delattr(backbone, name)
        return self._head.module(
            backbone, **{name: options[name] for name in self._head.options}, dtype=options["dtype"]
        )

    def _blocks_of_maps(self, depth: int) -> tuple[int, ...]:
        """Return the last blocks of equal parts of the depth, one for each map."""
        return tuple(depth * part // self._head.num_maps - 1 for part in range(1, self._head.num_maps + 1))


def _compose_variant(head: Head, family: Family, name: str) -> Variant:
    variant = family.variants[name]
    options = {option: value for option, value in variant.options.items() if option not in head.options}
    return Variant(options, size=head.size, mean=variant.mean, std=variant.std)


def _compose_format(head: Head, family: Family, backbone: KeyFormat) -> KeyFormat:
    def buffers(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, np.ndarray]:
        keys = list(keys)
        of_backbone = [_strip(key) for key in keys if key.startswith(_PREFIX)]
        found = {_prefix(key): value for key, value in backbone.buffers(options, of_backbone).items()}
        return found | batch_counters(options, [key for key in keys if not key.startswith(_PREFIX)])

    return KeyFormat(
        f"{head.key_format}-{backbone.name}",
        (
            Rule(f"{_PREFIX}{family.output_norms}.*", "norms.#.*"),
            *head.rules,
            *(_prefix_rule(rule) for rule in backbone.rules),
        ),
        ignored=(*map(_prefix, backbone.ignored), "**.num_batches_tracked"),
        buffers=buffers,
        linear=tuple(map(_prefix, backbone.linear)),
        fixed=backbone.fixed,
    )


def _prefix_rule(rule: Rule) -> Rule:
    return replace(rule, key=tuple(map(_prefix, rule.keys)), path=f"{_PREFIX}{rule.path}")


def _prefix(key: str) -> str:
    """Return the key of a backbone's tensor in a composed model; some families have the prefix already."""
    return _PREFIX + key.removeprefix(_PREFIX)


def _strip(key: str) -> str:
    return key.removeprefix(_PREFIX)
