"""Numbers as a page shows them; figures and tables as HTML, with words for who cannot see them."""

import html
import math
from collections.abc import Iterable

from jaxbackprop.graph.inspection.drawing import SUPERSCRIPTS

# The colours of both of marimo's themes. What goes forward is blue, what comes back is red.
STYLE = """<style>
:root { --ahead: #2b6cb0; --back: #b7311f; --box: #f5f7fa; --line: #4a5568; --now: #ffe69a }
.dark { --ahead: #7db8f0; --back: #ff8f7d; --box: #23282d; --line: #a0aab4; --now: #66531a }
[data-figure] { margin: 0; max-width: 100%; overflow: auto; color: var(--foreground) }
[data-figure] svg { display: block; width: 100%; height: auto }
[data-figure] text { fill: currentColor; font-family: inherit }
[data-figure] text.back { fill: var(--back) }
[data-figure] .box { fill: var(--box); stroke: var(--line) }
[data-figure] .now { fill: var(--now) }
[data-figure] .ahead { stroke: var(--line); fill: none; stroke-width: 1.5 }
[data-figure] .back:not(text) { stroke: var(--back); fill: none; stroke-width: 1.8 }
[data-figure] .faint { opacity: 0.3 }
[data-table] { border-collapse: collapse; font-variant-numeric: tabular-nums; width: auto;
    font-size: .9rem }
[data-table] th { white-space: nowrap }
.markdown p { max-width: 75ch }
[data-table] th, [data-table] td { padding: .15rem .8rem .15rem 0; text-align: left;
    vertical-align: top }
[data-table] tr.now > * { background: var(--now) }
[data-table] tr.back th { color: var(--back) }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start }
.beside > * { min-width: 0 }
.tall { display: none }
@media (max-width: 700px) { .wide { display: none } .tall { display: block } }
</style>"""


def number(value: float, places: int = 4) -> str:
    """With so many places; by its power of ten where those would hide it; never a −0."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 10 ** (1 - places) <= abs(value) < 1e6:
        return f"{value + 0.0:.{places}f}".replace("-", "−")
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}·10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", "−")


def figure(name: str, label: str, svg: str, width: float | None = None) -> str:
    """An SVG that fills the page up to `width` pixels, named for tests, described for readers."""
    most = f' style="max-width:{width:.0f}px"' if width else ""
    return (
        f'<figure data-figure="{name}" role="img" aria-label="{html.escape(label, quote=True)}"'
        f"{most}>{svg[svg.index('<') :]}</figure>"
    )


def table(
    name: str,
    rows: Iterable[tuple[str, ...]],
    head: tuple[str, ...] = (),
    marks: dict[str, str] | None = None,
) -> str:
    """Rows of text; the first cell heads its row, the last one is the number.

    `marks` are the classes of rows: `back` for what comes back, `now` for the step reached.
    """
    top = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in others)
        mark = f' class="{marks[first]}"' if marks and first in marks else ""
        lines.append(
            f'<tr data-row="{html.escape(first, quote=True)}"{mark}>'
            f'<th scope="row">{html.escape(first)}</th>{cells}</tr>'
        )
    return f'<table data-table="{name}" aria-live="polite">{"".join(lines)}</table>'


def beside(*parts: tuple[str, int]) -> str:
    """Parts next to each other where each has its width, one below the other where not."""
    each = (f'<div style="flex:1 1 {width}px">{part}</div>' for part, width in parts)
    return f'<div class="beside">{"".join(each)}</div>'
