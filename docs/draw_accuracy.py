"""Draw docs/images/accuracy.png, the published accuracy of the registered models: python docs/draw_accuracy.py."""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

from mambaout_jax.models import Family, families
from mambaout_jax.models.macs import variant_costs
from mambaout_jax.pages.figures import GREY, style_axes

FIGURE = Path(__file__).parent / "images" / "accuracy.png"
SIZE = 224
# Models that were pretrained on more images than those of ImageNet-1k say so in the address of their weights.
LARGER_DATASETS = ("in12k", "21k")
LABELS = {"VisionTransformer": "ViT (DeiT)"}  # the published ViTs of this size are DeiT's
# Of Okabe and Ito, Color Universal Design, 2008; markers differ too.
STYLES = (
    ("#d55e00", "o"), ("#777776", "s"), ("#56b4e9", "v"), ("#009e73", "D"),
    ("#b59f00", "P"), ("#cc79a7", "<"), ("#882255", ">"), ("#0072b2", "^"),
)  # fmt: skip


def points(family: Family) -> list[tuple[float, float]]:
    """Return multiply-adds in 1e9 and published top-1 in percent at 224 px of the models trained on ImageNet-1k."""
    found = []
    for name, variant in family.variants.items():
        address = variant.checkpoint.url if variant.checkpoint else ""
        if SIZE in variant.top1 and not any(dataset in address for dataset in LARGER_DATASETS):
            found.append((variant_costs(name)[1] / 1e9, variant.top1[SIZE]))
    return sorted(found)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no point with fewer multiply-adds exceeds."""
    return [point for index, point in enumerate(points) if all(other[1] < point[1] for other in points[:index])]


def content() -> str:
    """Return the points of all families as JSON, which the figure contains, so that a test detects an outdated one."""
    rounded = {family.name: [(round(macs, 3), top1) for macs, top1 in points(family)] for family in families()}
    return json.dumps(rounded)


def draw() -> None:
    """Write the figure."""
    mpl.rcParams.update({"font.family": "sans-serif", "font.size": 9})
    figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
    for family, (color, marker) in zip(families(), STYLES, strict=True):
        found = points(family)
        axes.plot(*zip(*found, strict=True), linestyle="", marker=marker, markersize=4.5, color=color, alpha=0.6)
        name = family.module.__name__
        line = {"label": LABELS.get(name, name), "color": color, "marker": marker, "markersize": 5.5}
        axes.plot(*zip(*frontier(found), strict=True), **line)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 40])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    style_axes(axes, f"multiply-adds for an image of {SIZE} px, 1e9")
    axes.set_title("published ImageNet-1k top-1, %", loc="left", fontsize=9, color=GREY)
    axes.legend(frameon=False, ncols=2, loc="lower right")
    figure.savefig(FIGURE, dpi=200, metadata={"Software": None, "Comment": content()})


if __name__ == "__main__":
    draw()
