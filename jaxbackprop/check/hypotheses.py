"""What may be wrong with one leaf: each hypothesis undoes one mistake.

If the candidate, say, transposed is the reference, then it was transposed. So a leaf of which only
projections are known is diagnosed like any other.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxbackprop.check.fitting import LOOSE, Finding, fits, undoes, undoes_to, whole
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import smallest


def not_finite(leaf: Leaf) -> Finding:
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


def kinked(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """Outside the one-sided slopes, and right elsewhere."""
    outside = [kink for kink in leaf.kinks if not kink[2] <= kink[1] <= kink[3]]
    if not outside or leaf.bad > len(outside):
        return None
    name, value, low, high = outside[0]
    text = f"{name} is {value:.6g}, outside the one-sided slopes [{low:.6g}, {high:.6g}] at a kink"
    return Finding("outside a kink", (leaf.name,), text)


def zero(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    if leaf.candidate.any() or not leaf.expected.any():
        return None
    largest, least = np.abs(leaf.expected).max(), smallest(leaf.dtype)
    if largest < least:
        text = f"{leaf.name} is zero: its gradient, {largest:.1e}, underflows in {leaf.dtype}"
        return Finding("underflow", (leaf.name,), f"{text}, whose least normal is {least:.1e}")
    return Finding("missing", (leaf.name,), f"{leaf.name} is zero: its gradient is missing")


def not_zero(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    if np.linalg.norm(leaf.expected) > leaf.bound:
        return None
    why = "f does not depend on it" if leaf.idle else "the slope of f is 0 at this point"
    text = f"{leaf.name} should be zero: {why}"
    return Finding("should be zero", (leaf.name,), text)


def summed(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """One number, or one a row, that is the sum or the mean of the reference over some axes."""
    if not whole(leaf) or leaf.candidate.size < 3:
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


def another(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
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


def rearranged(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
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


def offset(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    difference = leaf.candidate - leaf.expected.reshape(leaf.shape) if whole(leaf) else None
    if difference is None or difference.size < 3:
        return None
    mean = float(difference.mean())
    if np.abs(difference - mean).max() > LOOSE * abs(mean):
        return None
    return Finding("offset", (leaf.name,), f"{leaf.name} is the reference plus {mean:.6g}")


def part(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """A few rows, columns or entries are wrong, and the rest is right."""
    if not whole(leaf):
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
