"""A comparison as text of 80 columns: a row for each leaf, the worst entries, the verdict."""

import textwrap
from collections.abc import Sequence

import jax
import numpy as np

from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import eps

COLUMNS = 80
WORST = 6  # entries listed


def header(leaves: Sequence[Leaf], names: tuple[str, str], tolerance: str) -> str:
    """What is compared, where it was computed, and how close it has to be."""
    dtypes = ", ".join(dict.fromkeys(leaf.dtype for leaf in leaves)) or "no leaves"
    precision = getattr(jax.config, "jax_default_matmul_precision") or "default"  # noqa: B009
    return (
        f"{names[1]} against {names[0]}: {dtypes}, {jax.default_backend()}, "
        f"matmul precision {precision}\ntolerance: {tolerance}"
    )


def wrapped(lines: Sequence[str]) -> str:
    """The lines, none longer than 80 columns."""
    return "\n".join(
        line if len(line) <= COLUMNS else textwrap.fill(line, COLUMNS, subsequent_indent="  ")
        for text in lines
        for line in text.split("\n")
    )


def verdict(leaves: Sequence[Leaf], compared: int, undecided: int) -> str:
    """One line: passed or failed, and how much was compared."""
    at_kinks = f", {undecided} whose slopes do not settle: neither right nor wrong"
    at_kinks = at_kinks if undecided else ""
    if not compared:
        return f"FAILED: nothing was compared{at_kinks}"
    wrong = [leaf for leaf in leaves if not leaf.ok]
    total = f"{len(leaves)} leaves, {compared} numbers{at_kinks}"
    return f"FAILED: {len(wrong)} of {total}" if wrong else f"passed: {total}"


def table(leaves: Sequence[Leaf]) -> list[str]:
    rows = [("", "leaf", "shape", "max |Δ|", "‖Δ‖ in eps", "×tol", "ratio", "cos", "bad")]
    rows += [_row(leaf) for leaf in leaves]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    room = max(4, COLUMNS - sum(widths) + widths[1] - 2 * (len(widths) - 1))
    widths[1] = min(room, max(len(row[1]) for row in rows if len(row[1]) <= room))
    return [line for row in rows for line in _lines(row, widths)]


def _lines(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """A row; a name too long for its column has a line to itself."""
    if len(row[1]) > widths[1]:
        status, name, *cells = row
        named = textwrap.wrap(f"{status.ljust(widths[0])}  {name}", COLUMNS, subsequent_indent="  ")
        return [*named, *_lines(("", "", *cells), widths)]
    return [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
    ]


def _row(leaf: Leaf) -> tuple[str, ...]:
    shape = "×".join(map(str, leaf.shape)) or "scalar"
    size = leaf.expected.size
    if not leaf.finite:
        return ("BAD", leaf.name, shape, "not", "finite", "", "", "", f"{leaf.bad}/{size}")
    if not size:
        return ("?" if leaf.undecided else "", leaf.name, shape, "", "", "", "", "", "0/0")
    return (
        "ok" if leaf.ok else "BAD",
        leaf.name,
        shape,
        f"{np.abs(leaf.gap).max():.1e}",
        f"{leaf.error / eps(leaf.dtype):.2g}",
        f"{leaf.times:.2g}",
        "–" if np.isnan(leaf.ratio) else f"{leaf.ratio:.4g}",
        "–" if np.isnan(leaf.cosine) else f"{leaf.cosine:+.4f}",
        f"{leaf.bad}/{size}",
    )


def worst(leaves: Sequence[Leaf], names: tuple[str, str]) -> list[str]:
    """The worst entry of each wrong leaf, or of the leaf that is closest to its bound."""
    compared = [leaf for leaf in leaves if leaf.expected.size]
    wrong = [leaf for leaf in compared if not leaf.ok]
    shown = wrong or sorted(compared, key=lambda leaf: -leaf.error)[:1]
    lines = [
        f"{leaf.place(k)}: {names[1]} {leaf.found[k]:+.6e}, {names[0]} {leaf.expected[k]:+.6e}"
        for leaf in shown[:WORST]
        for k in [leaf.worst]
    ]
    more = len(shown) - WORST
    return [*lines, f"… and {more} more"] if more > 0 else lines
