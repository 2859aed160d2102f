"""The paper's criterion for whether a dataset needs an SSM, for each stage of a model.

The paper considers whole ViTs of one width. Applying its criterion to each stage of a hierarchical model is an
extension of this program. For example, it calls stage 1 of MambaOut at 224 px long, although the paper's first
hypothesis is that ImageNet needs no SSM.

Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025, sections 3.3 and 3.4.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.analyze import formulas
from mambaout_jax.checks import suggest
from mambaout_jax.models import Model, ScanInfo, create_model
from mambaout_jax.run.errors import RunError

# Height and width of the images in the paper, in pixels.
DATASETS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"imagenet": (224, 224), "coco": (800, 1280), "ade20k": (512, 2048)}
)
PATCH = 16
MAX_SIDE = 100_000  # pixels; larger images exceed the table's columns
WIDTHS = MappingProxyType({"small, patch 16": 384, "base, patch 16": 768})  # the ViTs of the paper
# The largest ratio that counts as near the threshold; the paper calls 4,000 and 4,096 tokens close to 4,608.
NEAR = 4 / 3

# Name and consequence of each verdict, from the shortest to the longest sequences.
VERDICTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "short": ("short", "no SSM needed"),
        "near": ("near the threshold", "an SSM may be worth exploring"),
        "long": ("long", "an SSM is worth exploring"),
    }
)
GATED_CNN = MappingProxyType({"kernel_size": 7, "expansion_ratio": 8 / 3, "conv_ratio": 1.0})  # as published


class Stage(NamedTuple):
    """A group of equal blocks: its channels, the pixels per token in height and width, and the scans of its SSM."""

    name: str
    channels: int
    stride: int
    scans: ScanInfo = ScanInfo()


def analyze(
    model: str | Model | None = None, dataset: str | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Compute all numbers for the stages of a model, or for the paper's two widths.

    Args:
        model: a name for `create_model`, or a model.
        dataset: one of `DATASETS`, for its image size.
        size: height and width. Without dataset and size, the default is the model's input size or, for the paper's
            widths, the size of each dataset.

    Returns:
        The name of the model, the answer as a sentence, the options of its Gated CNN blocks (the published ones if it
        has none), the number of directions in which its SSM scans (0 without an SSM; the largest of all stages), and a
        list of rows. FLOPs are per block, by term; memory is a count of numbers.

    Raises:
        ModelError: the model is unknown.
        RunError: the dataset is unknown, dataset and size are both given, or the size is not positive.
    """
    if dataset is not None and size is not None:
        raise RunError(f"--dataset {dataset} and --size are mutually exclusive; use one of them")
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise RunError(f"--size is {size[0]}x{size[1]}; expected a height and a width of 1 to {MAX_SIDE:,} px")
    if dataset is not None and dataset not in DATASETS:
        near = suggest(dataset, DATASETS)
        raise RunError(
            f"{dataset!r} is not a known dataset{near or '.'} Known datasets are {', '.join(DATASETS)}; or set --size"
        )
    gated_cnn = dict(GATED_CNN)
    if model is None:
        stages = [Stage(name, channels, PATCH) for name, channels in WIDTHS.items()]
        sizes = DATASETS
    else:
        built = create_model(model) if isinstance(model, str) else model
        infos = built.feature_info
        names = [f"stage {number}" for number in range(1, len(infos) + 1)] if len(infos) > 1 else ["all blocks"]
        stages = [Stage(name, *info, scans) for name, info, scans in zip(names, infos, built.scan_info, strict=True)]
        sizes = {"": built.input_spec.size}
        gated_cnn |= {option: built.options[option] for option in GATED_CNN if option in built.options}
    if dataset is not None:
        sizes = {dataset: DATASETS[dataset]}
    elif size is not None:
        sizes = {"": size}
    directions = max(stage.scans.directions for stage in stages)
    rows = [
        _row(dataset, size, stage, gated_cnn, with_ssm=directions > 0)
        for dataset, size in sizes.items()
        for stage in stages
    ]
    return {
        "model": None if model is None else built.name,
        "answer": answer([row["verdict"] for row in rows]),
        "gated_cnn": gated_cnn,
        "directions": directions,
        "rows": rows,
    }


def length_verdict(dim: int, tokens: int) -> str:
    """Return "short", "near" or "long" by the ratio of the tokens to the threshold 6 D."""
    ratio = formulas.length_ratio(dim, tokens)
    if 1 / NEAR <= ratio <= NEAR:
        return "near"
    return "short" if ratio < 1 else "long"


def answer(verdicts: Sequence[str]) -> str:
    """Return a sentence that summarizes the verdicts of all stages by the longest sequence."""
    strongest = max(verdicts, key=list(VERDICTS).index)
    length, advice = VERDICTS[strongest]
    if set(verdicts) == {strongest}:
        return f"{length.capitalize()}: {advice}."
    return f"{length.capitalize()} in some cases: {advice} there."


def measure_length(dim: int, tokens: int) -> dict[str, Any]:
    """Return the tokens, the threshold, their ratio, and the verdict as a key and as text."""
    verdict = length_verdict(dim, tokens)
    return {
        "tokens": tokens,
        "threshold": formulas.length_threshold(dim),
        "ratio": formulas.length_ratio(dim, tokens),
        "verdict": verdict,
        "verdict_text": ": ".join(VERDICTS[verdict]),
    }


def measure_first_stage(model: Model) -> dict[str, Any]:
    """Compute the sequence length in the first stage of a model, its longest, at the model's image size.

    For hierarchical models this is an extension of the paper's criterion, which is for whole ViTs.
    """
    first = model.feature_info[0]
    return measure_length(first.channels, formulas.count_tokens(model.input_spec.size, first.stride))


def _row(
    dataset: str, size: tuple[int, int], stage: Stage, gated_cnn: Mapping[str, Any], *, with_ssm: bool
) -> dict[str, Any]:
    dim, tokens = stage.channels, formulas.count_tokens(size, stage.stride)
    cnn = partial(formulas.gated_cnn_block_flops, dim, tokens, **gated_cnn)
    flops = {
        "transformer": formulas.transformer_block_flops(dim, tokens),
        "causal_transformer": formulas.transformer_block_flops(dim, tokens, causal=True),
        "gated_cnn": cnn(),
        **({"gated_cnn_ssm": cnn(scans=stage.scans)} if with_ssm else {}),
        "mamba": formulas.mamba_block_flops(dim, tokens),
    }
    return {
        "dataset": dataset or None,
        "height": size[0],
        "width": size[1],
        "stage": stage.name,
        "stride": stage.stride,
        "channels": dim,
        "scans": stage.scans._asdict(),
        **measure_length(dim, tokens),
        "flops": {block: {"total": sum(terms.values()), **terms} for block, terms in flops.items()},
        "memory": {
            "cache": formulas.cache_numbers(dim, tokens),
            "state": formulas.state_numbers(dim),
            "attention_matrix": formulas.attention_matrix_numbers(tokens),
        },
    }
