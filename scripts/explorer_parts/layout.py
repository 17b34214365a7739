"""Where the boxes and arrows of a graph stand: Graphviz decides, by their sizes."""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

Point = tuple[float, float]
Size = tuple[float, float]
BOX = (  # of exactly this size
    '<<TABLE BORDER="0" CELLBORDER="0" CELLPADDING="0" CELLSPACING="0" FIXEDSIZE="TRUE" '
    'WIDTH="{:.0f}" HEIGHT="{:.0f}"><TR><TD></TD></TR></TABLE>>'
)


class Placed(NamedTuple):
    """Middles of the nodes; of every edge the points of its curve, and the middle of its label."""

    size: Size
    nodes: list[Point]
    curves: list[list[Point]]
    labels: list[Point | None]


def place(
    nodes: Sequence[Size], edges: Sequence[tuple[int, int, Size | None]], tall: bool
) -> Placed:
    """From left to right, or downwards where it is `tall`; sizes are in pixels."""
    lines = [
        f"digraph {{ rankdir={'TB' if tall else 'LR'}; nodesep=0.2; ranksep=0.25; "
        'node [shape=box, fixedsize=true, label=""]; edge [dir=none]'
    ]
    for i, (width, height) in enumerate(nodes):
        lines.append(f"{i} [width={width / 72:.3f}, height={height / 72:.3f}]")
    for i, (tail, head, size) in enumerate(edges):
        label = f", label={BOX.format(*size)}" if size else ""
        lines.append(f"{tail} -> {head} [id={i}{label}]")
    return _by_graphviz("\n".join([*lines, "}"]))


@functools.lru_cache(maxsize=256)
def _by_graphviz(text: str) -> Placed:
    import pygraphviz

    drawn: Any = pygraphviz.AGraph(string=text).draw(format="json", prog="dot")
    found = json.loads(drawn)
    width, height = map(float, found["bb"].split(",")[2:])

    def point(written: str) -> Point:
        x, y = map(float, written.split(","))
        return x, height - y

    nodes = sorted(found["objects"], key=lambda each: int(each["name"]))
    edges = sorted(found.get("edges", []), key=lambda each: int(each["id"]))
    return Placed(
        (width, height),
        [point(each["pos"]) for each in nodes],
        [[point(each) for each in edge["pos"].split()] for edge in edges],
        [point(edge["lp"]) if "lp" in edge else None for edge in edges],
    )
