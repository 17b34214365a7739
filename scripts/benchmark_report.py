"""The results of `benchmark.py` as tables, figure, JSON and the tables of docs/performance.md."""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- tables: scripts/benchmark.py -->\n", "<!-- end of tables -->"
THEORY = {  # exponents of time and of memory, where products and activations dominate
    "width": (2, 1),
    "depth": (1, 1),
    "batch": (1, 1),
}
RULES = {"sgd": "SGD", "adam": "Adam"}
Rows = list[list[str]]


def report(result: dict, console: Console, folder: Path | None) -> None:
    """Print the tables; write them, the JSON and the figure where there is a folder."""
    tables = all_tables(result)
    for name, value in result["head"].items():
        if value:
            console.print(f"{name}: {value}")
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left")
        for k, name in enumerate(head):
            table.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if folder is None:
        return
    (folder / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(result, folder / "benchmark.png")
    page = folder / "performance.md"
    if page.exists():
        text = page.read_text()
        before, rest = text.split(BEGIN)
        page.write_text(before + BEGIN + markdown(result, tables) + END + rest.split(END)[1])
    console.print(f"wrote {folder}/")


def all_tables(result: dict) -> list[tuple[str, list[str], Rows]]:
    """(title, column heads, rows) of each table."""
    tables = []
    for name, work in result["works"].items():
        for kind in ("gradient", "sgd", "adam"):
            if kind in work:
                tables.append(one_table(name, work, kind))
    if "scaling" in result:
        tables.append(("Scaling", *scaling_table(result["scaling"])))
    return tables


def one_table(name: str, work: dict, kind: str) -> tuple[str, list[str], Rows]:
    epoch = kind != "gradient"
    flops = work["flops"] * (work["steps"] if epoch else 1)
    what = f"an epoch of {work['steps']} steps, {RULES[kind]}" if epoch else ""
    title = f"[{name}], batch {work['batch']}: {what or 'one gradient'}"
    head = ["peer", "ms", "ours / theirs", "quartiles", "GFLOP/s", "of products"]
    head += [] if epoch else ["compile s", "temporary MiB", "peak MiB"]
    rows = []
    for peer, row in work[kind].items():
        low, high = row["quartiles"]
        rate = "" if peer == "forward" else f"{flops / row['seconds'] / 1e9:.0f}"
        share = f"{row['of_products']:.0%}"
        if peer == "forward":
            share = f"by FLOPs {work['flops'] / work['forward_flops']:.2f}"
        cells = [peer, f"{row['seconds'] * 1e3:.4g}", f"{row['ratio']:.2f}"]
        cells += [f"{low:.2f}–{high:.2f}", rate, share]
        if not epoch:
            cells += [shown(row.get("compile_seconds"), ".2f")]
            temporary = row.get("temporary_bytes")
            cells += [shown(temporary and temporary / 2**20, ".2f")]
            cells += [shown(row.get("peak_mib"), ".0f")]
        rows.append(cells)
    return title, head, rows


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def exponent(values: list, measured: list) -> float:
    """The slope in logarithms over the upper half of the values, where constants have gone."""
    half = len(values) // 2
    return float(np.polyfit(np.log(values[half:]), np.log(measured[half:]), 1)[0])


def scaling_table(curves: dict) -> tuple[list[str], Rows]:
    head = ["against", "peer", "time ~", "theory", "memory ~", "theory"]
    rows = []
    for axis, curve in curves.items():
        for peer in ("jaxbackprop", "jax.grad"):
            time, memory = (
                exponent(curve["values"], curve[peer][kind]) for kind in ("seconds", "bytes")
            )
            theory = [str(power) for power in THEORY[axis]]
            rows.append([axis, peer, f"{time:.2f}", theory[0], f"{memory:.2f}", theory[1]])
    return head, rows


def markdown(result: dict, tables: list) -> str:
    lines = [f"- {name}: {value}" for name, value in result["head"].items() if value]
    for title, head, rows in tables:
        lines += ["", f"**{title}**", "", "| " + " | ".join(head) + " |"]
        lines += ["|---" + "|---:" * (len(head) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return re.sub(r"[ \t]+\n", "\n", "\n".join(lines)) + "\n\n"


def figure(result: dict, path: Path) -> None:
    """Ratios by work above; time and memory against width, depth and batch below."""
    curves = result.get("scaling", {})
    shape = (2 if curves else 1, 3)
    drawing, axes = plt.subplots(
        *shape, figsize=(12, 3.9 * shape[0]), layout="constrained", squeeze=False
    )
    for ax, kind in zip(axes[0], ("gradient", "sgd", "adam"), strict=True):
        ratios(ax, result["works"], kind)
    for ax, (axis, curve) in zip(axes[-1] if curves else [], curves.items(), strict=False):
        scales(ax, axis, curve)
    for ax in axes.ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def ratios(ax: plt.Axes, works: dict, kind: str) -> None:
    """A point for each work and peer, its quartiles as a bar: left of 1 the library is faster."""
    names = [n for n in next(iter(works.values()))[kind] if n not in ("jaxbackprop", "forward")]
    for k, (work, found) in enumerate(works.items()):
        rows = {n: found[kind][n] for n in names if n in found[kind]}
        heights = [names.index(n) + (k - len(works) / 2) * 0.14 for n in rows]
        middle = np.array([row["ratio"] for row in rows.values()])
        spread = np.array([row["quartiles"] for row in rows.values()]).T
        ax.errorbar(
            *(middle, heights),
            xerr=np.abs(spread - middle),
            fmt="o",
            markersize=4,
            label=work,
        )
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlim=(0.08, 4), yticks=range(len(names)), yticklabels=names)
    ticks = [0.1, 0.2, 0.5, 1, 2]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xticks([], minor=True)
    title = "one gradient" if kind == "gradient" else f"an epoch, {kind}"
    ax.set(title=f"{title}: our time / theirs")
    if kind == "gradient":
        ax.legend(fontsize=7, frameon=False)


def scales(ax: plt.Axes, axis: str, curve: dict) -> None:
    """Time (solid, left) and memory (dashed, right), each with its fitted exponent."""
    right = ax.twinx()
    for peer, color in (("jaxbackprop", "tab:blue"), ("jax.grad", "tab:orange")):
        for on, kind, unit, style in ((ax, "seconds", 1e3, "-"), (right, "bytes", 2**-20, "--")):
            power = exponent(curve["values"], curve[peer][kind])
            on.loglog(
                curve["values"],
                np.array(curve[peer][kind]) * unit,
                style,
                marker="o",
                markersize=3,
                color=color,
                label=f"{peer}, {'time' if kind == 'seconds' else 'memory'}: {power:.2f}",
            )
    last = curve["jaxbackprop"]["seconds"][-1] * 1e3 / curve["flops"][-1]  # the rate at the end
    for on, theory, style, label in (
        (ax, np.array(curve["flops"]) * last, "-", "FLOPs at the last rate"),
        (right, np.array(curve["activations"]) / 2**20, "--", "one activation a layer"),
    ):
        on.loglog(curve["values"], theory, style, color="gray", linewidth=0.8, label=label)
        on.yaxis.set_minor_formatter(NullFormatter())
    lines = [line for on in (ax, right) for line in on.get_lines()]
    ax.legend(handles=lines, fontsize=6, frameon=False)
    ax.set_xticks(curve["values"], [str(v) for v in curve["values"]])
    ax.set_xticks([], minor=True)
    time, memory = THEORY[axis]
    ax.set(title=f"{axis}: theory {time} (time), {memory} (memory)", ylabel="ms (solid)")
    right.set_ylabel("temporary MiB (dashed)")
    right.spines["top"].set_visible(False)
