"""What the explorer draws: SVG and tables as HTML, each with words for those who cannot see it."""

import html
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure

from explorer_parts import numbers
from jaxbackprop.graph.inspection.drawing import BACK

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)
BLUE, ORANGE = "#2b6cb0", "#c05621"
STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}


def figure(name: str, label: str, svg: str, width: int = 720) -> str:
    """An SVG that fills the page up to `width` pixels, named for tests, described for readers."""
    svg = svg[svg.index("<svg") :]
    return (
        f'<figure data-figure="{name}" role="img" aria-label="{html.escape(label, quote=True)}" '
        f'style="margin:0;max-width:{width}px;overflow-x:auto;background:#fff;color:#222">'
        f"{svg}</figure>"
    )


def table(name: str, rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Rows of text; the first cell heads its row, and the last one is what a test reads."""
    cell = "padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:top"
    top = "".join(f'<th scope="col" style="{cell}">{html.escape(text)}</th>' for text in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for first, *others in rows:
        cells = "".join(f'<td style="{cell}">{html.escape(text)}</td>' for text in others)
        lines.append(
            f'<tr data-row="{html.escape(first, quote=True)}">'
            f'<th scope="row" style="{cell};font-weight:600">{html.escape(first)}</th>{cells}</tr>'
        )
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums"
    return f'<table data-table="{name}" aria-live="polite" style="{style}">{"".join(lines)}</table>'


def _drawn(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    with matplotlib.rc_context(STYLE):
        picture = Figure(figsize=(width, height))
        # A layout that is solved costs more than the drawing: margins are given, in inches.
        picture.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.4 / height)
        draw(picture)
        file = io.StringIO()
        picture.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text.replace("<svg ", '<svg style="width:100%;height:auto" ', 1)


def _quiet(axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def chain(outer: str, inner: str, x: float, span: float = 3.0) -> str:
    """The curve, the point on it and the tangent there."""
    found = numbers.chain(outer, inner, x)
    written = numbers.name(outer, numbers.name(inner, "x"))
    y, slope = found["f(g(x))"], found["df/dx"]

    def draw(picture: Figure) -> None:
        axes = picture.subplots()
        xs, ys = numbers.curve(outer, inner, span)
        low, high = np.clip([ys.min(), ys.max()], -30, 30)
        margin = 0.15 * (high - low) + 0.1
        axes.plot(xs, ys, color=BLUE, linewidth=2, label=f"f(g(x)) = {written}")
        axes.plot(xs, y + slope * (xs - x), "--", color=ORANGE, label=f"tangent, slope {slope:.3f}")
        axes.plot([x], [y], "o", color=ORANGE, markersize=8)
        axes.set(xlabel="x", xlim=(-span, span), ylim=(low - margin, high + margin))
        _quiet(axes)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=2)

    label = f"Curve of {written}; at x = {x:.2f} its value is {y:.3f} and its slope {slope:.3f}"
    return figure("chain", label, _drawn(6.4, 3.6, draw))


def flow(text: str, values: tuple[float, ...], step: int) -> str:
    """The computation graph after `step` steps: first values forward, then gradients backward."""
    found, svg = numbers.inspection(text, values)[1], numbers.drawn(text, values)
    forward, backward = schedule(text, values)
    seen, back = forward[:step], backward[: max(0, step - len(forward))]
    root = ElementTree.fromstring(svg)
    for group in root.iter(f"{{{SVG}}}g"):
        title = group.findtext(f"{{{SVG}}}title") or ""
        ends = [int(end) for end in title.replace("n", "").split("->") if end.strip().isdigit()]
        if group.get("class") == "node":
            group.set("opacity", "1" if ends[0] in seen else "0.12")
            for words in group.iter(f"{{{SVG}}}text"):
                if words.get("fill") == BACK and ends[0] not in back:
                    words.set("opacity", "0")
        elif group.get("class") == "edge":
            # A contribution shows with the gradient of its receiver, which sums it.
            red = any(part.get("stroke") == BACK for part in group.iter())
            shown = min(ends) in back if red else set(ends) <= set(seen)
            group.set("opacity", "1" if shown else "0" if red else "0.06")
    width = float(root.get("width", "700pt").rstrip("pt")) * 1.34
    root.set("style", f"width:100%;height:auto;min-width:{min(width, 460):.0f}px")
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    label = f"Computation graph of {text}; result {float(found.value):.4g}, step {step}"
    drawn = ElementTree.tostring(root, encoding="unicode")
    return figure("flow", label, drawn, width=int(min(width, 1000)))


def schedule(text: str, values: tuple[float, ...]) -> tuple[list[int], list[int]]:
    """The numbers of the values in the order of the forward pass, and of the backward pass."""
    found = numbers.inspection(text, values)[1]
    order = [record.number for record in found]
    return order, [r.number for r in reversed(found.records) if r.gradient is not None]


def contributions(text: str, values: tuple[float, ...]) -> list[tuple[str, ...]]:
    """For each variable: its value, what each path back brings, and their sum."""
    expression, found = numbers.inspection(text, values)
    rows = []
    for record, name in zip(found.records, expression.names, strict=False):
        brought = [f"{float(path.gradient):.4g}" for path in record.paths] or ["0"]
        total = 0.0 if record.gradient is None else float(record.gradient)
        rows.append((f"∂f/∂{name}", " + ".join(brought), f"{total:.4f}"))
    return rows


def heat(name: str, label: str, arrays: list[np.ndarray], titles: list[str]) -> str:
    """Matrices as heat maps on one scale, with their numbers."""
    scale = max(float(np.abs(array).max()) for array in arrays) or 1.0

    def draw(picture: Figure) -> None:
        columns = [array.shape[1] for array in arrays]
        panels = picture.subplots(1, len(arrays), width_ratios=columns, squeeze=False)[0]
        for axes, array, title in zip(panels, arrays, titles, strict=True):
            axes.imshow(array, cmap="RdBu", vmin=-scale, vmax=scale, aspect="auto")
            axes.set(title=title, xticks=[], yticks=[])
            for (i, j), entry in np.ndenumerate(array):
                color = "white" if abs(entry) > 0.6 * scale else "#222"
                axes.text(j, i, f"{entry:.2f}", ha="center", va="center", color=color, fontsize=9)

    return figure(name, label, _drawn(6.8, 2.3, draw))


def training(data: str, activation: str, scheme: str, rate: float, step: int) -> str:
    """The decision boundary at a step, and the gradient norms of every layer up to the end."""
    run = numbers.train(data, activation, scheme, rate)
    x, y = numbers.points(data)
    extent = 1.15 * float(np.abs(x).max())
    output = numbers.boundary(run, activation, step, extent)

    def draw(picture: Figure) -> None:
        left, right = picture.subplots(1, 2)
        square = (-extent, extent, -extent, extent)
        left.imshow(
            output,
            cmap="RdBu",
            vmin=-0.6,  # paler than the points
            vmax=1.6,
            origin="lower",
            extent=square,
            interpolation="bilinear",
        )
        for label, color in ((0, "#9b2c2c"), (1, BLUE)):
            left.plot(*x[:, y[0] == label], "o", color=color, markersize=2.8)
        left.set(xticks=[], yticks=[], title=f"step {step}: C = {run.cost[step]:.3f}")
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, run.norms.shape[1]))
        for l, norms in enumerate(run.norms.T):
            right.semilogy(np.maximum(norms, 1e-12), color=shades[l], label=f"layer {l + 1}")
        right.axvline(step, color="#888", linewidth=1)
        right.set(xlabel="step", title="‖∂C/∂W‖")
        _quiet(right)
        right.legend(frameon=False, fontsize=8)

    label = f"Decision boundary and gradient norms on {data} after {step} steps, {activation}"
    return figure("training", label, _drawn(7.6, 3.6, draw), width=820)
