"""A gradient that is a multiple of the right one: which, and what that looks like."""

from collections.abc import Sequence

import numpy as np

from jaxbackprop.check.fitting import LOOSE, Finding, undoes
from jaxbackprop.check.leaf import Leaf


def one_factor(wrong: Sequence[Leaf], leaves: Sequence[Leaf]) -> Finding | None:
    """All leaves are wrong by the same factor."""
    factors = [c for leaf in wrong if (c := factor_of(leaf))]
    nonzero = [leaf for leaf in leaves if np.any(leaf.expected)]
    if len(wrong) < max(2, len(nonzero)) or not factors:
        return None
    c = float(np.median(factors))
    alike = all(
        abs(leaf.found / c - leaf.expected) <= LOOSE * abs(leaf.expected)
        if leaf.expected.size == 1
        else undoes(leaf, leaf.candidate / c)
        for leaf in wrong
    )
    names = tuple(leaf.name for leaf in wrong)
    return Finding("factor", names, f"every leaf is {_times(c, leaves)}") if alike else None


def factor(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    c = factor_of(leaf)
    text = f"{leaf.name} is {_times(c, leaves)}" if c else ""
    return Finding("factor", (leaf.name,), text) if c else None


def factor_of(leaf: Leaf) -> float | None:
    """c where candidate = c reference with c ≠ 1, else None."""
    size = float(np.dot(leaf.expected, leaf.expected))
    c = float(np.dot(leaf.found, leaf.expected)) / size if size else 0.0
    if leaf.expected.size == 1:  # any one number is a multiple of any other
        return c if min(abs(c - known) for known in (-1, 2, -2, 0.5, -0.5)) < LOOSE else None
    return c if c and undoes(leaf, leaf.candidate / c) else None


def _times(c: float, leaves: Sequence[Leaf]) -> str:
    """The factor in words: a sign, a whole number or its inverse, a width of the network."""
    said = f"{c:.6g} times the reference"
    whole = next((n for n in (round(abs(c)), round(1 / abs(c))) if n > 1), 0)
    if not whole or min(abs(abs(c) - whole), abs(abs(c) * whole - 1)) > LOOSE * max(1, abs(c)):
        return f"{said}: a constant factor" + (" and the sign" if c < 0 else "")
    sign = "the sign, and " if c < 0 else ""
    if abs(abs(c) - 1) < LOOSE:
        return f"{said}: the sign" if c < 0 else f"{said}: a constant factor"
    widths = [leaf.name for leaf in leaves if whole in leaf.shape]
    width = f" ({whole} is a width of {widths[-1]})" if widths else ""
    if whole == 2:
        return f"{said}: {sign}" + (
            f"a 2 too many{width}, as of a square without its ½"
            if abs(c) > 1
            else f"a ½ too many{width}"
        )
    if abs(c) > 1:
        return f"{said}: {sign}a sum where a mean over {whole} belongs{width}: is 1/m missing?"
    return (
        f"{said}: {sign}a division by {whole} too many{width}: is 1/m taken twice, or a mean where "
        "a sum belongs?"
    )
