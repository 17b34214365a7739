"""How far a gradient may be from the slopes of its function, and how far it is, leaf by leaf."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxbackprop.check import differences
from jaxbackprop.check.function import Flat, value_at
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import Named, eps
from jaxbackprop.check.probing import Measured, Probe, share, whole_size
from jaxbackprop.check.suspicions import reads

FEW = 8  # directions that tell whether rounding can explain an error at all


def judged(measured: Measured, gradient: list[Named]) -> list[Leaf]:
    """What the slopes say of the gradient: what fails may be wrong by rounding alone."""
    flat, probes, scatter = measured
    idle, whole = _idle(flat, probes), whole_size(probes)
    pairs = zip(probes, gradient, strict=True)
    leaves = [_leaf(probe, leaf.values, whole, k in idle) for k, (probe, leaf) in enumerate(pairs)]
    for k, leaf in enumerate(leaves):
        if leaf.distance > leaf.bound:
            leaves[k] = _conditioned(leaf, probes[k], flat, scatter)
    return leaves


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
    signs = np.random.default_rng(2).choice([-1.0, 1.0], flat.x.size)
    moved = flat.x * (1 + eps(leaf.dtype) * signs)
    along = flat.shaken() if flat.shaken else flat.along
    nearby = flat._replace(x=moved, cost=value_at(along, moved), along=along)
    gap = np.abs(probe.along(leaf.candidate) - probe.slopes.value)
    order = np.argsort(-np.nan_to_num(gap))
    if len(order) > FEW:
        few = order[:FEW]
        if 24 * _change(nearby, probe, few, scatter) < np.linalg.norm(gap[few]):
            return leaf
    change = _change(nearby, probe, order, scatter)
    return dataclasses.replace(leaf, bound=leaf.bound + 8 * change)


def _change(nearby: Flat, probe: Probe, which: np.ndarray, scatter: float) -> float:
    """How much these slopes are others nearby, where both settle."""
    rows = lambda ks: probe.rows(which[ks])  # noqa: E731
    there = differences.slopes(nearby, rows, len(which), scatter, probe.tolerance / 20)
    here = differences.Slopes(*(values[which] for values in probe.slopes))
    settled = ~(
        differences.unsettled(there, 0.0)
        | differences.unsettled(here, 0.0)
        | differences.kinks(there, 0.0)
        | differences.kinks(here, 0.0)
    )
    return float(np.linalg.norm((there.value - here.value)[settled]))
