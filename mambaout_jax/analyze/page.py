"""The page of `analyze`: a table, and plots of FLOPs and memory by sequence length, as one HTML file with PNGs."""

import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from mambaout_jax.analyze import formulas
from mambaout_jax.errors import reason
from mambaout_jax.machine import raise_machine_fault
from mambaout_jax.models import ScanInfo
from mambaout_jax.pages.figures import BLUE, GREY, INK, ORANGE, adapt_svg, style_axes
from mambaout_jax.pages.render import render
from mambaout_jax.run.errors import RunError
from mambaout_jax.run.files import write_atomically
from mambaout_jax.storage import find_unknown_home

DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1.5))
# Range of the axis in powers of four, extended if a length is outside.
SHORTEST, LONGEST = 3, 8


def write_page(analysis: dict[str, Any], folder: epath.PathLike) -> epath.Path:
    """Write analyze.html and, for each width, flops_D.png and memory_D.png into a folder; return the page's path.

    Raises:
        RunError: a file cannot be written.
    """
    if fault := find_unknown_home(folder):
        raise RunError(f"--out {folder} {fault}")
    folder = epath.Path(folder).expanduser()
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for dim in dict.fromkeys(row["channels"] for row in analysis["rows"]):
            rows = [row for row in analysis["rows"] if row["channels"] == dim]
            flops = partial(_draw_flops, analysis["gated_cnn"], ScanInfo(**rows[0]["scans"]))
            drawers = {"flops": flops, "memory": _draw_memory}
            pictures.append((dim, [_picture(kind, draw, dim, rows, folder) for kind, draw in drawers.items()]))
        page = folder / "analyze.html"
        write_atomically(page, _render(analysis, pictures))
    except OSError as error:
        raise_machine_fault(error, folder, to_write=True)
        raise RunError(f"{folder} is not writable ({reason(error)}); use another folder for --out") from None
    return page


def _render(analysis: dict[str, Any], pictures: list) -> str:
    images = list(dict.fromkeys((row["dataset"], row["height"], row["width"]) for row in analysis["rows"]))
    return render(
        __package__,
        "page.html.jinja",
        model=analysis["model"],
        answer=analysis["answer"],
        gated_cnn=analysis["gated_cnn"],
        directions=analysis["directions"],
        rows=analysis["rows"],
        images=images,
        pictures=pictures,
    )


def _picture(
    kind: str, draw: Callable[[Axes, int, list[int]], str], dim: int, rows: list[dict[str, Any]], folder: epath.Path
) -> dict[str, Any]:
    """Draw one plot twice: as a PNG file, and as SVG in the colors of the page."""
    name = f"{kind}_{dim}"
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log", base=4)
        axes.set_yscale("log")
        powers = _powers([row["tokens"] for row in rows])
        lengths = np.unique(np.geomspace(4 ** powers[0], 4 ** powers[-1], 100).astype(int)).tolist()
        about = draw(axes, dim, lengths)
        _mark_lengths(axes, dim, rows)
        style_axes(axes, "tokens L")
        _scale(axes, [4**power for power in powers])
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, handlelength=2.4, fontsize=8)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True)
        axes.set_title(f"{about}, D = {dim}", fontsize=9, loc="left", color=INK)
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    (folder / f"{name}.png").write_bytes(png.getvalue())
    return {"title": about, "svg": adapt_svg(svg.getvalue(), name), "file": f"{name}.png"}


def _powers(lengths: list[int]) -> range:
    """Return the powers of four on the axis."""
    first, last = (math.log(length, 4) for length in (min(lengths), max(lengths)))
    return range(min(SHORTEST, math.floor(first)), max(LONGEST, math.ceil(last)) + 1)


def _draw_flops(gated_cnn: Mapping[str, Any], scans: ScanInfo, axes: Axes, dim: int, lengths: list[int]) -> str:
    cnn = partial(formulas.gated_cnn_block_flops, **gated_cnn)
    lines = [
        ("Transformer", ORANGE, "-", formulas.transformer_block_flops),
        ("causal", ORANGE, DASHED, partial(formulas.transformer_block_flops, causal=True)),
        ("Gated CNN", BLUE, "-", cnn),
        ("Mamba", BLUE, DASHED, formulas.mamba_block_flops),
    ]
    if scans.directions:
        lines.append(("Gated CNN + SSM", BLUE, DOTTED, partial(cnn, scans=scans)))
    for label, color, line, count in lines:
        values = [sum(count(dim, length).values()) / length for length in lengths]
        axes.plot(lengths, values, color=color, linestyle=line, label=label, linewidth=1.8)
    axes.set_ylabel("FLOPs per token", color=GREY)
    return "FLOPs of a block per token"


def _draw_memory(axes: Axes, dim: int, lengths: list[int]) -> str:
    for label, color, line, values in (
        ("L² of full attention, per head", GREY, "-", map(formulas.attention_matrix_numbers, lengths)),
        ("KV cache of causal attention", ORANGE, "-", [formulas.cache_numbers(dim, length) for length in lengths]),
        ("state of a Mamba block", BLUE, "-", [formulas.state_numbers(dim)] * len(lengths)),
    ):
        axes.plot(lengths, list(values), color=color, linestyle=line, label=label, linewidth=1.8)
    axes.set_ylabel("elements in memory", color=GREY)
    return "Memory of a block"


def _mark_lengths(axes: Axes, dim: int, rows: list[dict[str, Any]]) -> None:
    """Mark the threshold and the lengths of the rows."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    threshold = formulas.length_threshold(dim)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=DOTTED)
    axes.annotate(
        f"6D = {threshold:,} ", (threshold, top), va="top", ha="right", color=INK, fontsize=8
    )  # to the left, where all lines are lower
    lengths = sorted({row["tokens"] for row in rows})
    axes.plot(lengths, [bottom] * len(lengths), "^", color=INK, clip_on=False, zorder=5, markersize=6)


def _scale(axes: Axes, ticks: list[int]) -> None:
    axes.set_xlim(ticks[0], ticks[-1])
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
