"""What the pattern of an error says about the backward pass that made it.

Each hypothesis undoes one mistake: if the candidate, say, transposed is the reference, then it was
transposed. So a leaf of which only projections are known is diagnosed like any other.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import eps, smallest

LOOSE = 1e-3  # how well a hypothesis must fit: better than chance, looser than a verdict


class Finding(NamedTuple):
    """One sentence, the leaves it is about, and its kind for programs."""

    kind: str
    leaves: tuple[str, ...]
    text: str


def diagnose(leaves: Sequence[Leaf]) -> tuple[Finding, ...]:
    """What is known about the leaves that failed."""
    wrong = [leaf for leaf in leaves if not leaf.ok]
    if not_finite := [leaf for leaf in wrong if not leaf.finite]:
        return tuple(_not_finite(leaf) for leaf in not_finite)
    if finding := _one_factor(wrong, leaves):
        return (finding,)
    named = [(leaf, _leaf(leaf, leaves)) for leaf in wrong]
    findings = _together([finding for _, finding in named if finding], leaves)
    if unexplained := [leaf for leaf, finding in named if finding is None]:
        findings.append(_where(unexplained, wrong, leaves))
    return tuple(findings)


def _leaf(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """The first hypothesis that explains this leaf alone."""
    for explain in (
        _kinked,
        _zero,
        _not_zero,
        _summed,
        _another,
        _rearranged,
        _factor,
        _offset,
        _part,
    ):
        if finding := explain(leaf, leaves):
            return finding
    return None


def fits(leaf: Leaf, candidate: np.ndarray) -> bool:
    """Is this the leaf's reference, as far as it was measured?"""
    size = np.linalg.norm(leaf.expected)
    return bool(
        leaf.expected.size > 1
        and size
        and np.linalg.norm(leaf.measure(candidate) - leaf.expected) <= loose(leaf) * size
    )


def undoes(leaf: Leaf, candidate: np.ndarray) -> bool:
    """Is this the leaf's reference, and the error of the leaf's own candidate explained by it?"""
    rest = np.linalg.norm(leaf.measure(candidate) - leaf.expected)
    return fits(leaf, candidate) and bool(rest <= 0.1 * leaf.distance)


def loose(leaf: Leaf) -> float:
    """How well a hypothesis must fit, relatively."""
    return max(LOOSE, 16 * eps(leaf.dtype))


def _not_finite(leaf: Leaf) -> Finding:
    counts = [
        f"{int(np.sum(test(leaf.candidate)))} {name}"
        for name, test in (("NaN", np.isnan), ("infinite", np.isinf))
        if test(leaf.candidate).any()
    ]
    size = leaf.candidate.size
    if not counts:
        text = f"{leaf.name}: the reference is not finite, the candidate is"
    else:
        text = f"{leaf.name} is not finite: {' and '.join(counts)} of {size} entries"
        if not np.isfinite(leaf.expected).all():
            text += ", and the reference is not finite either"
    return Finding("not finite", (leaf.name,), text)


def factor_of(leaf: Leaf) -> float | None:
    """c where candidate = c reference with c ≠ 1, else None."""
    size = float(np.dot(leaf.expected, leaf.expected))
    c = float(np.dot(leaf.found, leaf.expected)) / size if size else 0.0
    if leaf.expected.size == 1:  # any one number is a multiple of any other
        return c if min(abs(c - known) for known in (-1, 2, -2, 0.5, -0.5)) < LOOSE else None
    return c if c and undoes(leaf, leaf.candidate / c) else None


def _one_factor(wrong: Sequence[Leaf], leaves: Sequence[Leaf]) -> Finding | None:
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


def _factor(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    c = factor_of(leaf)
    text = f"{leaf.name} is {_times(c, leaves)}" if c else ""
    return Finding("factor", (leaf.name,), text) if c else None


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


def _zero(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    if leaf.candidate.any() or not leaf.expected.any():
        return None
    largest, least = np.abs(leaf.expected).max(), smallest(leaf.dtype)
    if largest < least:
        text = f"{leaf.name} is zero: its gradient, {largest:.1e}, underflows in {leaf.dtype}"
        return Finding("underflow", (leaf.name,), f"{text}, whose least normal is {least:.1e}")
    return Finding("missing", (leaf.name,), f"{leaf.name} is zero: its gradient is missing")


def _kinked(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """Outside the one-sided slopes, and right elsewhere."""
    outside = [kink for kink in leaf.kinks if not kink[2] <= kink[1] <= kink[3]]
    if not outside or leaf.bad > len(outside):
        return None
    name, value, low, high = outside[0]
    text = f"{name} is {value:.6g}, outside the one-sided slopes [{low:.6g}, {high:.6g}] at a kink"
    return Finding("outside a kink", (leaf.name,), text)


def _summed(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """One number, or one a row, that is the sum or the mean of the reference over some axes."""
    if not _whole(leaf) or leaf.candidate.size < 3:
        return None
    expected = leaf.expected.reshape(leaf.shape)
    for axes in _axes(leaf.candidate.ndim):
        if all(leaf.shape[k] == 1 for k in axes):
            continue
        over = "everything" if len(axes) == leaf.candidate.ndim else f"axis {axes[0]}"
        for what, total in (("sum", np.sum), ("mean", np.mean)):
            if undoes_to(leaf, np.broadcast_to(total(expected, axes, keepdims=True), leaf.shape)):
                text = (
                    f"{leaf.name} holds the {what} of the gradient over {over} in each entry: "
                    "a missing axis=, or keepdims, in a sum?"
                )
                return Finding("summed", (leaf.name,), text)
    return None


def _axes(ndim: int) -> Iterator[tuple[int, ...]]:
    """All axes, then each alone."""
    yield tuple(range(ndim))
    if ndim > 1:
        yield from ((k,) for k in range(ndim))


def undoes_to(leaf: Leaf, made: np.ndarray) -> bool:
    """Is the candidate what a mistake makes of the reference?"""
    gap = float(np.linalg.norm(leaf.candidate - made))
    return gap <= loose(leaf) * float(np.linalg.norm(made)) and gap <= 0.1 * leaf.distance


def _not_zero(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    if np.linalg.norm(leaf.expected) > leaf.bound:
        return None
    why = "f does not depend on it" if leaf.idle else "the slope of f is 0 at this point"
    text = f"{leaf.name} should be zero: {why}"
    return Finding("should be zero", (leaf.name,), text)


def _another(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    for other in leaves:
        if other.name != leaf.name and other.shape == leaf.shape and fits(other, leaf.candidate):
            kind = "swapped" if fits(leaf, other.candidate) else "shifted"
            text = (
                f"{leaf.name} and {other.name} are swapped"
                if kind == "swapped"
                else f"{leaf.name} holds the gradient of {other.name}: shifted by a layer?"
            )
            return Finding(kind, tuple(sorted((leaf.name, other.name))), text)
    return None


def _rearranged(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """The right numbers in the wrong places."""
    for kind, text, undone in _rearrangements(leaf.candidate):
        if undoes(leaf, undone):
            return Finding(kind, (leaf.name,), f"{leaf.name} is {text}")
        if undoes(leaf, -undone):
            return Finding(kind, (leaf.name,), f"{leaf.name} is {text}, and its sign is wrong")
    return None


def _rearrangements(array: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    if array.ndim >= 2:
        n, p = array.shape[-2:]
        if n == p:
            yield "transposed", "transposed", array.swapaxes(-1, -2)
        else:
            swapped = array.reshape(*array.shape[:-2], p, n).swapaxes(-1, -2)
            yield "transposed", "transposed, and reshaped to fit", swapped
    for axis in range(array.ndim):
        yield "reversed", f"reversed along axis {axis}", np.flip(array, axis)
        for step in (1, -1):
            text = f"shifted by {step} along axis {axis}"
            yield "off by one", text, np.roll(array, -step, axis)


def _offset(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    difference = leaf.candidate - leaf.expected.reshape(leaf.shape) if _whole(leaf) else None
    if difference is None or difference.size < 3:
        return None
    mean = float(difference.mean())
    if np.abs(difference - mean).max() > LOOSE * abs(mean):
        return None
    return Finding("offset", (leaf.name,), f"{leaf.name} is the reference plus {mean:.6g}")


def _whole(leaf: Leaf) -> bool:
    """Every entry of the leaf was compared."""
    return leaf.where is None and leaf.expected.size == leaf.candidate.size


def _part(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """A few rows, columns or entries are wrong, and the rest is right."""
    if not _whole(leaf):
        return None
    size = leaf.expected.size
    share = LOOSE * np.linalg.norm(leaf.expected) / math.sqrt(size)
    wrong = np.abs(leaf.candidate - leaf.expected.reshape(leaf.shape)) > share
    if not 0 < wrong.sum() <= size / 2 or size < 3:
        return None
    where = f"{leaf.place(leaf.worst)}, the rest is right"
    if wrong.sum() > 1:
        for axis in range(wrong.ndim):
            others = tuple(k for k in range(wrong.ndim) if k != axis)
            hit = np.flatnonzero(wrong.any(axis=others))
            if len(hit) == 1 and wrong.shape[axis] > 1:
                where = f"index {hit[0]} of axis {axis}, the rest is right"
                break
        else:
            if wrong.sum() > size / 4:
                return None
            where = f"{wrong.sum()} of {size} entries, the rest is right"
    zero = "zero" if not leaf.candidate[wrong].any() else "wrong"
    return Finding("part", (leaf.name,), f"{leaf.name} is {zero} at {where}")


def _together(findings: list[Finding], leaves: Sequence[Leaf]) -> list[Finding]:
    """One sentence for what several leaves have in common."""
    unique = list(dict.fromkeys(findings))
    groups: dict[str, list[Finding]] = {}
    for finding in unique:
        groups.setdefault(finding.kind, []).append(finding)
    result = []
    for kind, group in groups.items():
        names = tuple(name for finding in group for name in finding.leaves)
        if kind == "missing" and len(group) > 1:
            text = f"{_list(names)} are zero: their gradients are missing"
            if names == tuple(leaf.name for leaf in leaves)[: len(names)]:
                text += (
                    f"; no error is passed back below {leaves[len(names)].name}"
                    if len(names) < len(leaves)
                    else ""
                )
            result.append(Finding(kind, names, text))
        elif kind == "transposed" and len(group) > 1:
            result.append(Finding(kind, names, f"{_list(names)} are transposed"))
        else:
            result += group
    return result


def _list(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 6 else [*names[:3], "…", names[-1]]
    return ", ".join(shown)


def _where(unexplained: Sequence[Leaf], wrong: Sequence[Leaf], leaves: Sequence[Leaf]) -> Finding:
    """Where the error begins: gradients are made from the last leaf to the first."""
    names = tuple(leaf.name for leaf in unexplained)
    bad = {leaf.name for leaf in wrong}
    telling = [leaf.name for leaf in leaves if leaf.name in bad or np.any(leaf.expected)]
    layers = list(dict.fromkeys(map(_layer, telling)))
    hit = [layer for layer in layers if any(_layer(name) == layer for name in bad)]
    clean = [layer for layer in layers if layer not in hit]
    kinds = {_field(name) for name in bad}
    others = {_field(name) for name in telling if _layer(name) in hit} - kinds
    if others and len(layers) > 1:
        text = (
            f"only {_list(names)} wrong, and {_list(sorted(others))} right: the error δ is right, "
            f"so look at how {_list(sorted(kinds))} is made from it (BP3 for weights, BP4 for "
            "biases: which activations, which examples)"
        )
        return Finding("one kind of leaf", names, text)
    if len(layers) > 1 and len(hit) == len(layers):
        text = (
            f"wrong from the last layer on ({layers[-1]}): look at the output error (BP1), the "
            "loss and its average over the examples"
        )
        return Finding("from the output", names, text)
    if clean and hit == layers[: len(hit)]:
        text = (
            f"right down to {layers[len(hit)]}, wrong from {hit[-1]} on: look at how the error is "
            f"passed from {layers[len(hit)]} to {hit[-1]} (BP2: the transpose, σ′ and its layer)"
        )
        return Finding("from a layer", names, text)
    return Finding("leaves", names, f"wrong: {_list(names)}; no simple pattern")


def _layer(name: str) -> str:
    """All of a path but its last step: `[0]` of `[0].W`."""
    cut = max(name.rfind("."), name.rfind("["))
    return name[:cut] if cut > 0 else name


def _field(name: str) -> str:
    """The last step of a path: `.W` of `[0].W`."""
    return name[len(_layer(name)) :] or name
