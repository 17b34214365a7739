"""The results of `benchmark.py` as tables, figures, JSON and the tables of docs/performance.md."""

import json
import re
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmark_parts.figures import draw

BEGIN, END = "<!-- tables: scripts/benchmark.py -->\n", "<!-- end of tables -->"
THEORY = {  # exponents of time and of memory, where products and activations dominate
    "width": (2, 1),
    "depth": (1, 1),
    "batch": (1, 1),
}
RULES = {"sgd": "SGD", "adam": "Adam"}
Rows = list[list[str]]


def report(result: dict, console: Console, folder: Path | None) -> None:
    """Print the tables; write them, the JSON and the figures where there is a folder."""
    tables = all_tables(result)
    for name, value in result["head"].items():
        if value:
            console.print(f"{name}: {value}")
    for title, head, rows in tables:
        table = Table(title=title, title_justify="left")
        for k, name in enumerate(head):
            narrow = name.replace(" ", "\n")
            table.add_column(narrow, justify="left" if k == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if folder is None:
        return
    (folder / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, folder)
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
    head += [] if epoch else ["compile s", "temporary MiB", "peak MiB", "faults"]
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
            cells += [shown(row.get("page_faults"), "d")]
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
