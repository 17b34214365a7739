"""Graphs as the text draws them: values go forward along the edges, gradients come back on them.

A graph is a list of nodes and edges with lines; each line knows the step from which it is shown.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from explorer_parts import writing
from explorer_parts.layout import Point, Size, place

LETTER, ROW, PAD = 6.8, 18.0, 8.0  # of the text, in pixels
CELL = 29.0, 19.0  # of a matrix
MARGIN, GAP = 6.0, 10.0
APART = 3.5  # the ways forward and back run side by side, so far from their middle
LEAST = 0.6  # of its size
ALL = 10**6  # a step by which everything is shown


class Line(NamedTuple):
    """What is written: text, or an array of at most two axes, whose names are `axes`.

    It is shown from `step` on; `back` says that it comes with the backward pass.
    """

    name: str
    text: str
    step: int = 0
    back: bool = False
    array: np.ndarray | None = None
    axes: tuple[str, str] = ("", "")


class Node(NamedTuple):
    name: str
    lines: tuple[Line, ...]


class Edge(NamedTuple):
    """From one node's name to another's; the gradient comes back along it from step `back` on."""

    tail: str
    head: str
    lines: tuple[Line, ...] = ()
    back: int | None = None


def figure(
    name: str, label: str, nodes: Sequence[Node], edges: Sequence[Edge], step: int = ALL
) -> str:
    """The graph as it stands after a step: from left to right, and downwards on a phone.

    It shrinks to the page, but not so far that it could not be read: a long one is scrolled.
    """
    drawn = []
    for kind in ("wide", "tall"):
        svg, width = _drawn(nodes, edges, step, kind == "tall")
        drawn.append(f'<div class="{kind}" style="max-width:{width:.0f}px">{svg}</div>')
    return writing.figure(name, label, "".join(drawn))


def _drawn(
    nodes: Sequence[Node], edges: Sequence[Edge], step: int, tall: bool
) -> tuple[str, float]:
    numbers = {node.name: i for i, node in enumerate(nodes)}
    sizes = [_size(node.lines, tall) for node in nodes]
    ends = [(numbers[edge.tail], numbers[edge.head]) for edge in edges]
    asked = [
        (*pair, _with_room(_size(edge.lines, False), tall) if edge.lines else None)
        for pair, edge in zip(ends, edges, strict=True)
    ]
    placed = place([(w + 2 * PAD, h + PAD) for w, h in sizes], asked, tall)
    parts = []
    for (_, head), edge, curve, middle in zip(
        ends, edges, placed.curves, placed.labels, strict=True
    ):
        reached = step >= max(line.step for line in nodes[head].lines if not line.back)
        parts += _arrow(curve, reached, edge.back is not None and step >= edge.back)
        if middle:
            parts += _lines(edge.lines, middle, step, False)
    for node, (width, height), middle in zip(nodes, sizes, placed.nodes, strict=True):
        x, y = middle[0] - width / 2 - PAD, middle[1] - height / 2 - PAD / 2
        parts.append(
            f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width + 2 * PAD:.1f}" '
            f'height="{height + PAD:.1f}" rx="9"/>'
        )
        parts += _lines(node.lines, middle, step, tall)
    width, height = (side + 2 * MARGIN for side in placed.size)
    view = f"{-MARGIN:.0f} {-MARGIN:.0f} {width:.0f} {height:.0f}"
    least = f"min-width:{LEAST * width:.0f}px"
    svg = (
        f'<svg viewBox="{view}" style="{least}" font-size="14" text-anchor="middle">'
        f"{''.join(parts)}</svg>"
    )
    return svg, width


# The size of a block of lines does not depend on the step: nothing jumps as the step moves.


def _own(line: Line) -> Size:
    if line.array is None:
        return LETTER * len(line.text), ROW
    rows, columns = line.array.shape
    named = 14.0 if line.axes[0] else 0.0
    width = max(columns * CELL[0] + named, LETTER * len(line.text), 6.2 * len(line.axes[1]) + named)
    return width, ROW + max(rows * CELL[1], 6.0 * len(line.axes[0])) + (14 if line.axes[1] else 2)


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Matrices and their gradients apart; text in one group."""
    if all(line.array is None for line in lines):
        return [list(lines)]
    split = [[line for line in lines if line.back == back] for back in (False, True)]
    return [group for group in split if group]


def _stacked(sizes: Sequence[Size]) -> Size:
    return max(w for w, _ in sizes), sum(h for _, h in sizes)


def _in_a_row(sizes: Sequence[Size]) -> Size:
    return sum(w for w, _ in sizes) + GAP * (len(sizes) - 1), max(h for _, h in sizes)


def _arranged(lines: Sequence[Line], tall: bool) -> tuple[Size, list[tuple[Line, float, float]]]:
    """The size of a block, and where each line's own box begins in it.

    Text stands in one column. Of matrices the gradients stand below the values, in a row each, and
    in a tall picture beside them, in a column each.
    """
    groups = _groups(lines)
    rows = len(groups) > 1 and not tall
    within, among = (_in_a_row, _stacked) if rows else (_stacked, _in_a_row)
    sizes = [within([_own(line) for line in group]) for group in groups]
    whole, found, start = among(sizes), [], 0.0
    for group, (width, height) in zip(groups, sizes, strict=True):
        x, y = ((whole[0] - width) / 2, start) if rows else (start, 0.0)
        for line in group:
            own = _own(line)
            found.append((line, x if rows else x + (width - own[0]) / 2, y))
            x, y = (x + own[0] + GAP, y) if rows else (x, y + own[1])
        start += height if rows else width + GAP
    return whole, found


def _with_room(size: Size, tall: bool) -> Size:
    """A label keeps clear of the ways, which pass below it, or to its left in a tall picture."""
    return size[0] + (3 if tall else 1) * PAD, size[1] + PAD


def _size(lines: Sequence[Line], tall: bool) -> Size:
    return _arranged(lines, tall)[0]


def _lines(lines: Sequence[Line], middle: Point, step: int, tall: bool) -> list[str]:
    (width, height), placed = _arranged(lines, tall)
    left, top = middle[0] - width / 2, middle[1] - height / 2
    found = []
    for line, x, y in placed:
        if step >= line.step:
            found += _line(line, left + x, top + y, line.step == step > 0)
    return found


def _line(line: Line, left: float, top: float, now: bool) -> list[str]:
    wide, high = _own(line)
    x, found = left + wide / 2, []
    if now:
        found.append(
            f'<rect class="now" x="{x - wide / 2 - 3:.1f}" y="{top:.1f}" '
            f'width="{wide + 6:.1f}" height="{high:.1f}" rx="4"/>'
        )
    kind = "back" if line.back else "on"
    found.append(
        f'<text data-line="{html.escape(line.name)}" class="{kind}" '
        f'x="{x:.1f}" y="{top + 13.5:.1f}">{html.escape(line.text)}</text>'
    )
    return found if line.array is None else found + _matrix(line, line.array, x, top + ROW)


def _matrix(line: Line, array: np.ndarray, x: float, top: float) -> list[str]:
    """Numbers on cells that are blue where positive and ochre where negative, by their size."""
    scale = float(np.abs(array).max()) or 1.0
    (rows, columns), (wide, high) = array.shape, CELL
    named = 14.0 if line.axes[0] else 0.0
    left = x - columns * wide / 2 + named / 2
    found = []
    for (i, j), entry in np.ndenumerate(array):
        strength = 0.6 * min(abs(float(entry)) / scale, 1.0)
        color = "43,108,176" if entry > 0 else "214,137,16"
        a, b = left + j * wide, top + i * high
        found.append(
            f'<rect x="{a:.1f}" y="{b:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}" '
            f'fill="rgba({color},{strength:.2f})"/><text data-cell="{html.escape(line.name)}" '
            f'font-size="11" x="{a + wide / 2:.1f}" y="{b + 13:.1f}">{_cell(float(entry))}</text>'
        )
    small = 'class="axis" font-size="10" opacity="0.75"'
    if line.axes[1]:
        below = top + max(rows * high, 6.0 * len(line.axes[0])) + 9
        found.append(f'<text {small} x="{x + named / 2:.1f}" y="{below:.1f}">{line.axes[1]}</text>')
    if line.axes[0]:
        a, b = left - 5, top + rows * high / 2
        turn = f'transform="rotate(-90 {a:.1f} {b:.1f})"'
        found.append(f'<text {small} {turn} x="{a:.1f}" y="{b:.1f}">{line.axes[0]}</text>')
    return found


def _cell(entry: float) -> str:
    """Two places fit a cell; what rounds to 0 has no sign."""
    text = f"{entry:.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def _arrow(curve: list[Point], reached: bool, returned: bool) -> list[str]:
    """The way forward, and beside it the way back where a gradient has come along it."""
    faint = "" if reached else " faint"
    found = [_way(_moved(curve, APART if returned else 0), f"ahead{faint}", "var(--line)", faint)]
    if returned:
        found.append(_way(_moved(curve, -APART)[::-1], "back", "var(--back)", ""))
    return found


def _way(curve: list[Point], kind: str, color: str, faint: str) -> str:
    """A curve of graphviz's, which is Bézier's, with a head at its end."""
    (x, y), (from_x, from_y) = curve[-1], curve[-2]
    angle = math.degrees(math.atan2(y - from_y, x - from_x))
    first, *others = (f"{a:.1f},{b:.1f}" for a, b in curve)
    return (
        f'<path class="{kind}" d="M{first}C{" ".join(others)}"/>'
        f'<path class="head{faint}" fill="{color}" d="M0,0L-9,-4L-9,4Z" '
        f'transform="translate({x:.1f} {y:.1f}) rotate({angle:.0f})"/>'
    )


def _moved(curve: list[Point], by: float) -> list[Point]:
    """Sideways, seen along the line between its ends."""
    along = curve[-1][0] - curve[0][0], curve[-1][1] - curve[0][1]
    length = math.hypot(*along) or 1.0
    return [(x + by * along[1] / length, y - by * along[0] / length) for x, y in curve]
