"""The variants of a study: models that differ in token mixing and as little else as possible.

They are defined in the section `study` of an experiment (docs/study.md, configs/study.py).
"""

import bisect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.checks import ConfigKey, find_fault
from mambaout_jax.models import Model, create_model
from mambaout_jax.models.macs import count_model_macs
from mambaout_jax.run.errors import RunError
from mambaout_jax.words import count

TOLERANCE = 0.02  # of the baseline's parameters
# Each is a key of `config.study` that lists variants.
COMPARISONS: Mapping[str, str] = MappingProxyType(
    {"removed": "With and without the SSM, at equal widths", "matched": "Equal numbers of parameters"}
)

Options = dict[str, Any]
Neighbors = tuple[Options, Options]


class VariantSpec(NamedTuple):
    """An entry of `config.study.variants`.

    Args:
        title: display name.
        has_ssm: whether the variant has an SSM; the study's answer is about these variants.
        model: options on top of `config.model`. With a "name" it is a different model, which takes from `config.model`
            the options that both have, and the preprocessing.
        width: the option that is scaled to match parameters: a tuple in steps of 1/1000, a number in multiples of the
            option `multiple_of`.
        multiple_of: required if `width` is a number.
        fill: an option that multiplies `width`, to fine-tune the number of parameters.
        derived: options computed from the baseline, by name: "first_stride", pixels per token in its first stage, or
            "num_blocks", the sum of its `depths`.
    """

    title: str
    has_ssm: bool
    model: Mapping[str, Any]
    width: str
    multiple_of: str | None = None
    fill: str | None = None
    derived: Mapping[str, str] = MappingProxyType({})


class StudyVariant(NamedTuple):
    """A model of a study.

    Args:
        name: name of its runs: the entry of `config.study.variants`, after the comparison except for the baseline.
        comparisons: the comparisons that include it.
        model: its section `model` of the config.
        params: number of parameters.
        macs: multiply-adds per image.
    """

    name: str
    title: str
    has_ssm: bool
    comparisons: tuple[str, ...]
    model: Options
    params: int
    macs: int


def design_variants(
    model: Mapping[str, Any], study: Mapping[str, Any] | None, build: Callable[[Options], Model]
) -> list[StudyVariant]:
    """Build the models that a study compares, the baseline first.

    Args:
        model: the section of the config. Its widths are those of the baseline and of the comparison "removed"; in
            "matched" they are scaled until the parameters are equal.
        study: the section of the config, whose keys are `baseline`, the names in `COMPARISONS`, and `variants`.
        build: builds a model from its section of a config.

    Raises:
        RunError: the section `study` is missing or invalid, the model lacks its options, or a variant cannot be scaled
            to within 2 % of the baseline's parameters.
        ModelError: an option is invalid.
    """
    specs = read_specs(study)
    given = dict(model)
    base = specs[study["baseline"]]
    options = create_model(given["name"]).options
    if unknown := [option for option in (*base.model, base.width) if option not in options]:
        raise RunError(
            f"config.model.name is {given['name']!r}, which has no {' and no '.join(unknown)}; expected a model with "
            f"the options of config.study.variants.{study['baseline']}"
        )
    own = build(given)
    baseline = _build(study["baseline"], base, tuple(COMPARISONS), given | dict(base.model), build)
    variants = [baseline]
    for comparison in COMPARISONS:
        for name in study[comparison]:
            options = _variant_options(name, specs[name], given, own)
            if comparison == "matched":
                options = _match(name, specs[name], base.width, options, build, baseline.params)
            variants.append(_build(f"{comparison}-{name}", specs[name], (comparison,), options, build))
    return variants


_COMPARED = ConfigKey(tuple[str, ...], None, (), "names of variants")
_SPEC = {
    "title": ConfigKey(str, None, None, "for tables and pages"),
    "has_ssm": ConfigKey(bool, None, None, "whether the study asks about this variant"),
    "width": ConfigKey(str, None, None, "option that is scaled"),
    "multiple_of": ConfigKey(str | None, None, None, "option whose multiples `width` takes"),
    "fill": ConfigKey(str | None, None, None, "option that multiplies `width`"),
}


def read_specs(study: Mapping[str, Any] | None) -> dict[str, VariantSpec]:
    """Read the section `study` of a config.

    Raises:
        RunError: it is missing or invalid.
    """
    expected = ("baseline", *COMPARISONS, "variants")
    if not isinstance(study, Mapping) or sorted(study) != sorted(expected):
        found = f"has the keys {', '.join(study)}" if isinstance(study, Mapping) else "is missing"
        raise RunError(f"config.study {found}; expected {', '.join(expected)}, as in configs/study.py")
    if not isinstance(study["variants"], Mapping):
        raise RunError(f"config.study.variants is {study['variants']!r}; expected a section of variants")
    specs = {name: _read_spec(f"config.study.variants.{name}", entry) for name, entry in study["variants"].items()}
    _require("config.study.baseline", ConfigKey(str, tuple(specs), None, "name of a variant"), study["baseline"])
    for comparison in COMPARISONS:
        names = study[comparison]
        _require(f"config.study.{comparison}", _COMPARED, names)
        for name in names:
            if name not in specs or names.count(name) > 1 or name == study["baseline"]:
                raise RunError(
                    f"config.study.{comparison} has {name!r}; expected distinct names of config.study.variants other "
                    f"than the baseline: {', '.join(specs)}"
                )
    return specs


def _read_spec(place: str, entry: Any) -> VariantSpec:
    try:
        spec = VariantSpec(**entry)
    except TypeError as error:
        raise RunError(f"{place} is invalid ({error}); expected keys are {', '.join(VariantSpec._fields)}") from error
    for field, key in _SPEC.items():
        _require(f"{place}.{field}", key, getattr(spec, field))
    for field in ("model", "derived"):
        if not isinstance(getattr(spec, field), Mapping):
            raise RunError(f"{place}.{field} is {getattr(spec, field)!r}; expected a section")
    return spec


def _require(name: str, key: ConfigKey, value: Any) -> None:
    if fault := find_fault(name, key, value):
        raise RunError(fault)


def _build(
    name: str, spec: VariantSpec, comparisons: tuple[str, ...], options: Options, build: Callable[[Options], Model]
) -> StudyVariant:
    model = build(options)
    macs = count_model_macs(model)
    return StudyVariant(name, spec.title, spec.has_ssm, comparisons, options, model.num_params, macs)


def _variant_options(name: str, spec: VariantSpec, given: Options, own: Model) -> Options:
    if "name" not in spec.model:
        return given | dict(spec.model)
    known = create_model(spec.model["name"]).options
    preprocessing = own.input_spec._asdict()
    quantities = {"first_stride": own.feature_info[0].stride, "num_blocks": sum(own.options.get("depths", ()))}
    for option, quantity in spec.derived.items():
        if quantity not in quantities:
            raise RunError(
                f"config.study.variants.{name}.derived.{option} is {quantity!r}; expected one of "
                f"{', '.join(quantities)}"
            )
    return {
        **{option: value for option, value in given.items() if option in known},
        "img_size": preprocessing.pop("size"),
        **preprocessing,
        **{option: quantities[quantity] for option, quantity in spec.derived.items()},
        **spec.model,
    }


def _match(
    name: str,
    spec: VariantSpec,
    base_width: str,
    options: Options,
    build: Callable[[Options], Model],
    target: int,
) -> Options:
    def count_params(options: Options) -> int:
        return build(options).num_params

    start = build(options).options
    if isinstance(start[spec.width], tuple):
        near = _match_scaled(spec.width, start[spec.width], options, count_params, target)
    else:
        near = _match_multiples(spec, start[spec.multiple_of], options, count_params, target)
    counted = [(options, count_params(options)) for options in near]
    nearest, params = min(counted, key=lambda found: abs(found[1] - target))
    if abs(params - target) > TOLERANCE * target:
        raise RunError(
            f"variant {name} has {count(params, 'parameter')} at its nearest width and the baseline {target:,}, more "
            f"than {100 * TOLERANCE:g} % apart; use larger config.model.{base_width}"
        )
    return nearest


def _match_scaled(
    width: str, sizes: tuple[int, ...], options: Options, count: Callable[[Options], int], target: int
) -> Neighbors:
    def scale(thousandths: int) -> Options:
        return options | {width: tuple(max(2, round(size * thousandths / 1000)) for size in sizes)}

    return _around(range(100, 2001), scale, count, target)


def _match_multiples(
    spec: VariantSpec, unit: int, options: Options, count: Callable[[Options], int], target: int
) -> Neighbors:
    """Find the largest multiple with at most the target's parameters, then the two closest values of `fill`."""

    def widen(units: int) -> Options:
        return options | {spec.width: unit * units}

    options, above = _around(range(1, 1025), widen, count, target)
    if spec.fill is None:
        return options, above
    width = options[spec.width]

    def fill(hidden: int) -> Options:
        return options | {spec.fill: hidden / width}

    return _around(range(1, 8 * width), fill, count, target)


def _around(values: range, make: Callable[[int], Options], count: Callable[[Options], int], target: int) -> Neighbors:
    """Find the two adjacent values around the target; the number of parameters increases with the value."""
    above = bisect.bisect_right(values, target, key=lambda value: count(make(value)))
    return make(values[max(above - 1, 0)]), make(values[min(above, len(values) - 1)])
