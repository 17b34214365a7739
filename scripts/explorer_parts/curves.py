"""The figures with axes, drawn by matplotlib; what moves with a step is put in afterwards."""

import base64
import functools
import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import image
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from explorer_parts import chain, training, writing
from explorer_parts.training import Choice
from jaxbackprop.graph.inspection.drawing import SUPERSCRIPTS

BLUE, ORANGE = "#2b6cb0", "#c05621"
INK = "#010203"  # stands for the colour of the page's own text, in either theme
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titley": 1.02,  # or it is searched for
}


def _drawn(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    with matplotlib.rc_context(STYLE):
        picture = Figure(figsize=(width, height), facecolor="none")
        # A layout that is solved costs more than the drawing: margins are given, in inches.
        picture.subplots_adjust(0.62 / width, 0.5 / height, 1 - 0.12 / width, 1 - 0.55 / height)
        draw(picture)
        file = io.StringIO()
        picture.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().replace(INK, "currentColor")
    return text[text.index("<svg") :]


def _quiet(axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _power(value: float, position: int) -> str:
    """10⁻³, without the half of the drawing's time that setting formulas takes."""
    return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"


def chain_rule(outer: str, inner: str, x: float) -> str:
    """The curve, the point on it and the tangent there."""
    found = chain.chain(outer, inner, x)
    written = chain.written(outer, chain.written(inner, "x"))
    y, slope = found["f(g(x))"], found["df/dx"]

    def draw(picture: Figure) -> None:
        axes = picture.subplots()
        xs, ys = chain.curve(outer, inner)
        low, high = np.clip([ys.min(), ys.max()], -30, 30)
        margin = 0.15 * (high - low) + 0.1
        name = writing.number(slope, 3)
        axes.plot(xs, ys, color=BLUE, linewidth=2, label=f"f(g(x)) = {written}")
        axes.plot(xs, y + slope * (xs - x), "--", color=ORANGE, label=f"tangent, slope {name}")
        axes.plot([x], [y], "o", color=ORANGE, markersize=8)
        axes.set(xlabel="x", xlim=(-chain.SPAN, chain.SPAN), ylim=(low - margin, high + margin))
        _quiet(axes)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), frameon=False, borderpad=0)

    label = (
        f"Curve of {written}; at x = {writing.number(x)} its value is {writing.number(y, 3)} "
        f"and its slope {writing.number(slope, 3)}"
    )
    return writing.figure("chain", label, _drawn(5.0, 3.4, draw), width=520)


SQUARE = 330.0  # of the decision boundary, in pixels


def boundary(choice: Choice, step: int) -> str:
    """What the network says of every point of the square, and the points with their classes."""
    grid = np.flipud(training.boundary(choice, step))
    file = io.BytesIO()
    image.imsave(file, grid, cmap="RdBu", vmin=-0.6, vmax=1.6, format="png")  # paler than points
    picture = base64.b64encode(file.getvalue()).decode()
    label = (
        f"What the network says of each point after {step} steps on {choice.data}, in two colours"
    )
    svg = (
        f'<svg viewBox="0 0 {SQUARE:.0f} {SQUARE:.0f}"><image width="100%" height="100%" '
        f'href="data:image/png;base64,{picture}"/>{_points(choice.data)}</svg>'
    )
    return writing.figure("boundary", label, svg, width=SQUARE)


@functools.lru_cache(maxsize=4)
def _points(data: str) -> str:
    x, y = training.points(data)
    at = (np.stack([x[0], -x[1]]) / training.extent(data) + 1) * SQUARE / 2
    return "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{BLUE if c else "#9b2c2c"}"/>'
        for a, b, c in zip(*at, y[0], strict=True)
    )


def errors(choice: Choice, step: int) -> str:
    """‖δ‖ layer by layer at the start, and beside it its course."""
    svg, (left, width, top, height) = _errors(choice)
    x = left + width * step / (training.STEPS - 1)
    line = (
        f'<line data-step="{step}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" '
        f'y2="{top + height:.1f}" stroke="currentColor" stroke-width="1.2"/></svg>'
    )
    label = (
        f"Size of the error by layer, at the start and step by step, with {choice.activation} on "
        f"{choice.data}; step {step} is marked"
    )
    return writing.figure("errors", label, svg.replace("</svg>", line), width=640)


@functools.lru_cache(maxsize=32)
def _errors(choice: Choice) -> tuple[str, tuple[float, float, float, float]]:
    """The figure without the step's mark; left, width, top and height of the axes it belongs to."""
    run = training.train(choice)
    # What is 0, or no number, has no place on a logarithmic axis: a gap.
    shown = np.where(np.isfinite(run.errors) & (run.errors > 0), run.errors, np.nan)
    layers = np.arange(1, shown.shape[1] + 1)
    width, height, box = 5.2, 3.2, []

    def draw(picture: Figure) -> None:
        left, right = picture.subplots(1, 2, sharey=True, width_ratios=[1, 1.7])
        picture.subplots_adjust(wspace=0.1)
        colors = matplotlib.colormaps["plasma"](np.linspace(0.3, 0.78, len(layers)))
        left.semilogy(layers, shown[0], color="#888", linewidth=1, zorder=1)
        left.scatter(layers, shown[0], color=colors, zorder=2)
        left.set(xlabel="layer", title="‖δ‖ at the start", xlim=(0.5, len(layers) + 0.5))
        left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        for l, course in zip(layers, shown.T, strict=True):
            right.semilogy(course, color=colors[l - 1], label=f"layer {l}")
            there = np.flatnonzero(np.isfinite(course))
            if there.size:  # its name at its end
                right.annotate(str(l), (there[-1], course[there[-1]]), (3, -4), color=colors[l - 1],
                               textcoords="offset points", fontsize=9)  # fmt: skip
        right.set(xlabel="step", title="its course, by layer", xlim=(0, training.STEPS - 1))
        powers = np.log10(shown[np.isfinite(shown)])
        low, high = math.floor(powers.min()), math.floor(powers.max()) + 1
        right.yaxis.set_major_locator(LogLocator(numticks=8))
        right.yaxis.set_major_formatter(_power)
        right.yaxis.set_minor_locator(NullLocator())
        right.set_ylim(10.0**low, 10.0**high)  # whole powers: no label between them
        for axes in (left, right):
            _quiet(axes)
        frame = right.get_position()
        box.extend(
            72 * side
            for side in (
                *(frame.x0 * width, frame.width * width),
                *((1 - frame.y1) * height, frame.height * height),
            )
        )

    return _drawn(width, height, draw), tuple(box)
