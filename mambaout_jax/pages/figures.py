"""Matplotlib figures as SVG in the colours and fonts of a page."""

import re

from markupsafe import Markup
from matplotlib.axes import Axes

# Matplotlib draws with these colours; the style sheet of the page has a value for each in light, dark and print.
# Blue and orange stay apart for every kind of colour vision, and no two lines differ by colour alone.
INK, RULE, BLUE, ORANGE, GREY = "#111112", "#dddddc", "#0072b2", "#d55e00", "#777776"
CSS_COLOURS = {INK: "--ink", RULE: "--rule", BLUE: "--blue", ORANGE: "--orange", GREY: "--muted"}


def restrain(axes: Axes, across: str) -> None:
    """Reduce the frame of a plot to its lower axis, in the colours of the page, and label that axis."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=GREY)
    axes.set_xlabel(across, color=GREY)


def adapt_svg(svg: str, name: str) -> Markup:
    """Return an SVG of matplotlib for inclusion: unique ids, the colours of the page, the width of its column."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # it holds the date
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))
