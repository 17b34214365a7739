"""How far a gradient may be from the slopes of its function, and how far it is, leaf by leaf."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxbackprop.check import differences
from jaxbackprop.check.function import Flat, value_at
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import Named, eps
from jaxbackprop.check.probing import Measured, Probe, share, whole_size
from jaxbackprop.check.shaking import DRAWS
from jaxbackprop.check.suspicions import reads

FEW = 8  # directions that tell whether rounding can explain an error at all


def judged(measured: Measured, gradient: list[Named]) -> list[Leaf]:
    """What the slopes say of the gradient: what fails may be wrong by rounding alone."""
    flat, probes, _ = measured
    idle, whole = _idle(flat, probes), whole_size(probes)
    pairs = zip(probes, gradient, strict=True)
    leaves = [_leaf(probe, leaf.values, whole, k in idle) for k, (probe, leaf) in enumerate(pairs)]
    return [
        _excused(leaf, probe, measured, whole) if leaf.distance > leaf.bound else leaf
        for leaf, probe in zip(leaves, probes, strict=True)
    ]


def _excused(leaf: Leaf, probe: Probe, measured: Measured, whole: float) -> Leaf:
    """What a second look at the slopes explains, or rounding: alone, or by a decision it turned."""
    flat, _, scatter = measured
    probe = probe._replace(slopes=_closer(leaf, probe, flat, scatter))
    leaf = _leaf(probe, leaf.candidate, whole, leaf.idle)
    leaf = leaf if leaf.ok else _conditioned(leaf, probe, flat, scatter)
    if leaf.ok or flat.turned is None:
        return leaf
    return _turned(leaf, probe, measured._replace(flat=flat.turned()), whole)


def _closer(leaf: Leaf, probe: Probe, flat: Flat, scatter: float) -> differences.Slopes:
    """The slopes by smaller steps, where these contradict some that the leaf fails by."""
    gap, _ = _gap(leaf, probe)
    order = np.argsort(-np.nan_to_num(gap / np.maximum(probe.slopes.error, 1e-300)))
    closer = differences.Slopes(*(values.copy() for values in probe.slopes))
    for which in (order[:FEW], order[FEW:]):  # most failures need no look at the others
        some = differences.Slopes(*(values[which] for values in closer))
        rows = lambda ks, which=which: probe.rows(which[ks])  # noqa: E731
        if not len(which) or not differences.contradicted(flat, rows, some, scatter).any():
            break
        for values, new in zip(closer, some, strict=True):
            values[which] = new
    return closer


def _turned(leaf: Leaf, probe: Probe, own: Measured, whole: float) -> Leaf:
    """The leaf held to f with its own decisions where that makes it right; else as it is.

    A sum that cancels to 0 in float32 does not in float64: what f does at 0 is then its gradient,
    and not what it does beside.
    """
    flat, _, scatter = own
    gap, order = _gap(leaf, probe)
    few = order[:FEW]
    there = _slopes(flat, probe, few, scatter).value
    if not np.linalg.norm(probe.along(leaf.candidate)[few] - there) < np.linalg.norm(gap[few]) / 2:
        return leaf
    probe = probe._replace(slopes=_slopes(flat, probe, np.arange(len(gap)), scatter))
    other = _leaf(probe, leaf.candidate, whole, leaf.idle)
    other = other if other.ok else _conditioned(other, probe, flat, scatter)
    return dataclasses.replace(other, turned=True) if other.ok else leaf


def _gap(leaf: Leaf, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """How far the gradient is from each slope, and in which order: the farthest first."""
    gap = np.abs(probe.along(leaf.candidate) - probe.slopes.value)
    return gap, np.argsort(-np.nan_to_num(gap))


def _slopes(flat: Flat, probe: Probe, which: np.ndarray, scatter: float) -> differences.Slopes:
    """Of f along some of the probe's directions."""
    rows = lambda ks: probe.rows(which[ks])  # noqa: E731
    return differences.slopes(flat, rows, len(which), scatter, probe.tolerance / 20)


def _idle(flat: Flat, probes: list[Probe]) -> set[int]:
    """The leaves that f does not depend on, as far as its graph tells; else, its values."""
    if flat.graph is not None:
        read = reads(flat.graph)
        return {k for k in range(len(probes)) if not read[k]}
    still = [not probe.slopes.value.any() and not probe.slopes.rounding.any() for probe in probes]
    return {k for k, idle in enumerate(still) if idle}


def _leaf(probe: Probe, values: np.ndarray, whole: float, idle: bool) -> Leaf:
    """What the probe says: the decided slopes, and how far the gradient may be from them."""
    found, name = probe.slopes, probe.name
    least, candidate = share(probe, whole), probe.along(values)
    expected, error = found.value.copy(), found.error.copy()
    kinks = differences.kinks(found, least)
    low, high = differences.sides(found)
    expected[kinks] = np.clip(candidate, low, high)[kinks]
    error[kinks] = found.jump_error[kinks]
    open_ = differences.unsettled(found, least) & ~kinks
    if probe.entries is None:  # many kinks along one direction: their slopes need not nest
        open_ |= kinks & (expected != candidate)
    kept = np.flatnonzero(~open_)
    size, doubt = float(np.linalg.norm(expected[kept])), float(np.linalg.norm(error[kept]))
    bound = probe.tolerance * max(size, float(np.linalg.norm(high[kinks & ~open_]))) + 3 * doubt
    if 0 < size <= 10 * doubt:  # zero as far as the differences tell
        bound += 64 * eps(probe.dtype) * whole
    where = None if probe.every and not open_.any() else _places(probe, kept)
    place = _places(probe, np.arange(len(found.value)))
    between = tuple(
        (name + place(k), float(candidate[k]), float(low[k]), float(high[k]))
        for k in map(int, np.flatnonzero(kinks & ~open_))
    )
    undecided = tuple(name + place(k) for k in map(int, np.flatnonzero(open_)))
    measure = lambda other: probe.along(other)[kept]  # noqa: E731
    return Leaf(
        name, probe.shape, probe.dtype, expected[kept], values, bound, measure, where, undecided,
        between, idle,
    )  # fmt: skip


def _places(probe: Probe, kept: np.ndarray) -> Callable[[int], str]:
    """The k-th kept slope in words."""

    def place(k: int) -> str:
        if probe.entries is None:
            return f" along direction {kept[k]}"
        index = np.unravel_index(probe.entries[kept[k]], probe.shape)
        return f"[{', '.join(map(str, index))}]" if index else ""

    return place


def _conditioned(leaf: Leaf, probe: Probe, flat: Flat, scatter: float) -> Leaf:
    """The leaf with room for rounding that no formula avoids.

    An error no larger than what the gradient changes by where the arguments, and all results on the
    way, are off in their last place is rounding: of a sum that cancels, say. The largest errors are
    looked at first: most are so much larger that the others need no look.
    """
    nearby = [_nearby(flat, leaf.dtype, draw) for draw in range(DRAWS)]
    gap, order = _gap(leaf, probe)
    if len(order) > FEW:
        few = order[:FEW]
        change = max(_change(one, probe, few, scatter) for one in nearby[:2])
        if 12 * change < np.linalg.norm(gap[few]):
            return leaf
    change = max(_change(one, probe, order, scatter) for one in nearby)
    return dataclasses.replace(leaf, bound=leaf.bound + 4 * change)


def _nearby(flat: Flat, dtype: str, draw: int) -> Flat:
    """f where the arguments, and all results on the way, are off in their last place."""
    signs = np.random.default_rng(2 + draw).choice([-1.0, 1.0], flat.x.size)
    moved = flat.x * (1 + eps(dtype) * signs)
    along = flat.shaken(draw) if flat.shaken else flat.along
    return flat._replace(x=moved, cost=value_at(along, moved), along=along)


def _change(nearby: Flat, probe: Probe, which: np.ndarray, scatter: float) -> float:
    """How much these slopes are others nearby, where both settle."""
    there = _slopes(nearby, probe, which, scatter)
    here = differences.Slopes(*(values[which] for values in probe.slopes))
    settled = ~(
        differences.unsettled(there, 0.0)
        | differences.unsettled(here, 0.0)
        | differences.kinks(there, 0.0)
        | differences.kinks(here, 0.0)
    )
    return float(np.linalg.norm((there.value - here.value)[settled]))
