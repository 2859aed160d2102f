"""Matplotlib figures as SVG in the colors and fonts of a page."""

import re

from markupsafe import Markup
from matplotlib.axes import Axes

# Figures are drawn in these colors; the style sheet of the page replaces them by values for light, dark and print.
# Blue and orange are distinguishable with every kind of color vision, and no two lines differ only in color.
INK, RULE, BLUE, ORANGE, GREY = "#111112", "#dddddc", "#0072b2", "#d55e00", "#777776"
CSS_COLORS = {INK: "--ink", RULE: "--rule", BLUE: "--blue", ORANGE: "--orange", GREY: "--muted"}


def style_axes(axes: Axes, xlabel: str) -> None:
    """Style a plot for the page: only the lower axis, labeled `xlabel`, and a horizontal grid."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=GREY)
    axes.set_xlabel(xlabel, color=GREY)


def adapt_svg(svg: str, name: str) -> Markup:
    """Return a matplotlib SVG for inlining: with unique ids, the colors of the page and the width of its column."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # contains the date
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in CSS_COLORS.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))
