"""Does a task need an SSM? The paper's criterion for a model's stages, at the size of a task's images.

The paper takes whole ViTs of one width. To ask each stage of a hierarchy is an extension of this program, which can
call a stage long in a model and a task that by the paper's first hypothesis need no SSM: stage 1 of MambaOut at 224 px.

Reference: Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025, sections 3.3 and 3.4.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from mambaout_jax.analyze import formulas
from mambaout_jax.models import Model, create_model
from mambaout_jax.ops import SCAN_ORDERS
from mambaout_jax.run.errors import RunError

# Height and width of the images, as the paper takes them.
TASKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"imagenet": (224, 224), "coco": (800, 1280), "ade20k": (512, 2048)}
)
PATCH = 16
MAX_SIDE = 100_000  # of an image, in pixels: more is a typing error, and no column holds its tokens
WIDTHS = MappingProxyType({"small, patch 16": 384, "base, patch 16": 768})  # those of the ViTs that the paper takes
# The paper calls 4,000 and 4,096 tokens about 4,608; this is how far around 1 the ratio counts as that.
NEAR = 4 / 3

# From the weakest on: what a length is called, and what follows from it.
VERDICTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "short": ("short", "no SSM needed"),
        "near": ("near the threshold", "worth exploring"),
        "long": ("long", "an SSM is worth exploring"),
    }
)
GATED_CNN = MappingProxyType({"kernel_size": 7, "expansion_ratio": 8 / 3, "conv_ratio": 1.0})  # as published


class Place(NamedTuple):
    """Hold where blocks work: their channels, and how many pixels a token spans in height and width."""

    name: str
    channels: int
    stride: int


def analyze(model: str | None = None, task: str | None = None, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Compute every number for a model's stages, or for the paper's two widths.

    Args:
        model: a name that `create_model` takes.
        task: one of `TASKS`.
        size: height and width. With neither task nor size a model is taken at its own, and the paper's widths at each
            task's.

    Returns:
        The model, the answer in words, the options of its Gated CNN blocks (the published ones where it has none), the
        directions in which an SSM in them reads the map (0 without one), and a list of rows. FLOPs are those of one
        block, by term; memory is in numbers, of any bytes each.

    Raises:
        ModelError: there is no such model.
        RunError: there is no such task, task and size are both given, or the size is not positive.
    """
    if task is not None and size is not None:
        raise RunError(f"task {task} has images of a size of its own; give either --task or --size")
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise RunError(f"the size is {size[0]}x{size[1]}; a height and a width of 1 to {MAX_SIDE:,} px are expected")
    if task is not None and task not in TASKS:
        near = "".join(f"; did you mean {other!r}?" for other in difflib.get_close_matches(task, TASKS, n=1))
        raise RunError(f"{task!r} is no task{near or '.'} Known are {', '.join(TASKS)}; or give a --size")
    gated_cnn, directions = dict(GATED_CNN), 0
    if model is None:
        places = [Place(name, channels, PATCH) for name, channels in WIDTHS.items()]
        sizes = TASKS
    else:
        built = create_model(model)
        stages = built.feature_info
        names = [f"stage {number}" for number in range(1, len(stages) + 1)] if len(stages) > 1 else ["all blocks"]
        places = [Place(name, info.channels, info.stride) for name, info in zip(names, stages, strict=True)]
        sizes = {"": built.input_spec.size}
        gated_cnn |= {option: built.options[option] for option in GATED_CNN if option in built.options}
        if built.options.get("token_mixer") == "conv_ssm":
            directions = len(SCAN_ORDERS[built.options["scan_order"]])
    if task is not None:
        sizes = {task: TASKS[task]}
    elif size is not None:
        sizes = {"": size}
    rows = [_row(task, size, place, gated_cnn, directions) for task, size in sizes.items() for place in places]
    return {
        "model": model,
        "answer": answer([row["verdict"] for row in rows]),
        "gated cnn": gated_cnn,
        "directions": directions,
        "rows": rows,
    }


def judge(dim: int, tokens: int) -> str:
    """Say "short", "near" or "long": the tokens beside the threshold of 6 D."""
    ratio = formulas.length_ratio(dim, tokens)
    if 1 / NEAR <= ratio <= NEAR:
        return "near"
    return "short" if ratio < 1 else "long"


def answer(verdicts: Sequence[str]) -> str:
    """Sum up the verdicts of all places in a sentence, by the strongest one."""
    strongest = max(verdicts, key=list(VERDICTS).index)
    length, advice = VERDICTS[strongest]
    if set(verdicts) == {strongest}:
        return f"{length.capitalize()}: {advice}."
    return f"{length.capitalize()} in some places: {advice} there."


def measure_length(dim: int, tokens: int) -> dict[str, Any]:
    """Give the tokens, the threshold, their ratio and the verdict, in a word and in words."""
    verdict = judge(dim, tokens)
    return {
        "tokens": tokens,
        "threshold": formulas.length_threshold(dim),
        "ratio": formulas.length_ratio(dim, tokens),
        "verdict": verdict,
        "words": ": ".join(VERDICTS[verdict]),
    }


def measure_first_stage(model: Model) -> dict[str, Any]:
    """Measure the longest sequence in a model, that of its first blocks, at its own size.

    For a hierarchy this is not the paper's verdict, which is about whole ViTs.
    """
    first = model.feature_info[0]
    return measure_length(first.channels, formulas.count_tokens(model.input_spec.size, first.stride))


def _row(
    task: str, size: tuple[int, int], place: Place, gated_cnn: Mapping[str, Any], directions: int
) -> dict[str, Any]:
    dim, tokens = place.channels, formulas.count_tokens(size, place.stride)
    cnn = partial(formulas.gated_cnn_block_flops, dim, tokens, **gated_cnn)
    flops = {
        "transformer": formulas.transformer_block_flops(dim, tokens),
        "causal transformer": formulas.transformer_block_flops(dim, tokens, causal=True),
        "gated cnn": cnn(),
        **({"gated cnn + ssm": cnn(directions=directions)} if directions else {}),
        "mamba": formulas.mamba_block_flops(dim, tokens),
    }
    return {
        "task": task or None,
        "height": size[0],
        "width": size[1],
        "place": place.name,
        "stride": place.stride,
        "channels": dim,
        **measure_length(dim, tokens),
        "flops": {block: {"total": sum(terms.values()), **terms} for block, terms in flops.items()},
        "memory": {
            "cache": formulas.cache_numbers(dim, tokens),
            "state": formulas.state_numbers(dim),
            "attention matrix": formulas.attention_matrix_numbers(tokens),
        },
    }
