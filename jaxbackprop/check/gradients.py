"""A gradient against finite differences of the function that it belongs to."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbackprop import graph
from jaxbackprop.check import differences
from jaxbackprop.check.arguments import Moving, copied, matched, moving
from jaxbackprop.check.compare import Comparison
from jaxbackprop.check.function import Flat, flatten, value_at
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import Named, eps, named
from jaxbackprop.check.progress import progress
from jaxbackprop.check.suspicions import broadcast_warnings, reads
from jaxbackprop.check.traced import UNTRACEABLE, transformed
from jaxbackprop.check.widened import made_of

EVERY = 2000  # up to so many numbers in all, every one is moved
DIRECTIONS, LEAST = 32, 4  # random ones, for each leaf of a larger argument
ALL_DIRECTIONS = 320  # together, where there are many leaves
SHOWN = 4  # of many alike
SPECTRAL = {"eigh", "eig", "svd", "schur"}
CALLED = "gradient: the function was called on f"
BEGINNING = ("the function", "the gradient")
NAMES = ("differences", "gradient")
TOLERANCE = "‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their error in each leaf"


def check_gradients(
    f: Callable[..., Any],
    *args: Any,
    gradient: Any = None,
    argnums: int | tuple[int, ...] = 0,
) -> Comparison:
    """Is `gradient` the gradient of the scalar function f at args?

    `gradient` is what is being checked: values with the structure of args[argnums] (of a tuple of
    them where argnums is one), or with its leaves' names; or a function of args that returns them;
    or `jax.grad` itself, which is called on f; by default jax's gradient of f, which runs the rules
    of every custom_vjp in f. `args` are pytrees of arrays of jax, NumPy or PyTorch, or modules of
    flax or equinox, and f need not be traceable by jax.

    The differences are taken in float64: on the graph of f, with its random numbers and what it
    stops held, or where jax cannot trace f on a float64 copy of all floating point arguments. They
    are taken at every number up to 2,000 in all and along random directions of each leaf beyond.
    A leaf is right where ‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their own error, with eps of
    the argument's dtype. At a kink of f there is no gradient: what lies between the one-sided
    slopes is right. Slopes that do not settle are counted, and are neither right nor wrong.

    Raises ValueError where f is not scalar, real, finite and the same in all calls; where the
    argument is not real floating point; or, naming the leaf, where the gradient's structure, shapes
    or dtypes do not fit the argument's.
    """
    moves = moving(args, argnums)
    with progress([*BEGINNING, *moves.names]) as done:
        flat = flatten(f, moves)
        done()
        fewer, found = _candidate(f, moves, flat.graph is not None, gradient)
        done()
        if len(fewer.leaves) < len(moves.leaves):
            moves, flat = fewer, flatten(f, fewer)
        scatter = differences.noise(flat)
        probes = _probes(flat, found, scatter, done)
    leaves = _leaves(flat, moves, probes, scatter)
    notes = (_differences(flat, leaves, scatter), _taylor(flat, probes, leaves, scatter))
    said = (CALLED,) if _is_transform(gradient) else ()
    wrong = any(not leaf.ok for leaf in leaves)
    broadcasts = tuple(broadcast_warnings(f, moves)) if flat.graph is not None and wrong else ()
    return Comparison(tuple(leaves), NAMES, TOLERANCE, (*said, *notes, *broadcasts))


def _candidate(
    f: Callable, moves: Moving, traceable: bool, gradient: Any
) -> tuple[Moving, list[Named]]:
    """The gradient to check, and the leaves that it is by."""
    if gradient is None or _is_transform(gradient):
        return moves, _transformed(gradient or jax.grad, f, moves, traceable)
    is_function = callable(gradient) and jax.tree_util.treedef_is_leaf(jax.tree.structure(gradient))
    values = gradient(*moves.copies()) if is_function else gradient
    return matched(moves, values, given=not is_function)


def _transformed(transform: Callable, f: Callable, moves: Moving, traceable: bool) -> list[Named]:
    of = lambda leaves: f(*moves.rebuild(leaves))  # noqa: E731
    try:
        if traceable:
            found = transformed(transform, of, moves.leaves)
        else:
            found = transform(of)(list(map(copied, moves.leaves)))
    except UNTRACEABLE as error:
        raise ValueError("jax cannot trace f: `gradient` has to be given") from error
    pairs = zip(moves.names, found, strict=True)
    return [named(name, leaf, "the gradient") for name, leaf in pairs]


def _is_transform(gradient: Any) -> bool:
    """jax.grad, or ours: what makes a gradient of f, not a gradient."""
    return gradient in (jax.grad, graph.grad) if callable(gradient) else False


class Probe(NamedTuple):
    """Directions within one leaf, and the slopes of f along them."""

    leaf: Named
    offset: int
    rows: Callable[[np.ndarray], np.ndarray]  # the k-th directions among all numbers
    along: Callable[[np.ndarray], np.ndarray]  # a gradient's slopes along them
    entries: np.ndarray | None  # the numbers moved one by one; None: random directions
    tolerance: float
    slopes: differences.Slopes

    @property
    def every(self) -> bool:
        return self.entries is not None and len(self.entries) == self.leaf.values.size


def _probes(
    flat: Flat, leaves: list[Named], scatter: float, done: Callable[[], None]
) -> list[Probe]:
    generator, probes, offset, n = np.random.default_rng(1), [], 0, flat.x.size
    count = int(np.clip(ALL_DIRECTIONS // max(1, len(leaves)), LEAST, DIRECTIONS))
    for leaf in leaves:
        size = leaf.values.size
        if n <= EVERY or size <= count:
            probe = _moved(flat, leaf, offset, np.arange(size), scatter)
        else:
            matrix = differences.weights(generator, count, size)
            probe = _random(flat, leaf, offset, matrix, scatter)
            if _at_kinks(probe).mean() > 0.5:  # along a direction many kinks mix
                entries = np.sort(generator.choice(size, count, replace=False))
                probe = _moved(flat, leaf, offset, entries, scatter)
        probes.append(probe)
        offset += size
        done()
    return probes


def _moved(flat: Flat, leaf: Named, offset: int, entries: np.ndarray, scatter: float) -> Probe:
    """Some numbers of the leaf, one by one."""
    rows = differences.unit_vectors(offset, flat.x.size, entries)
    tolerance = _tolerance(flat, leaf)
    found = differences.slopes(flat, rows, len(entries), scatter, tolerance / 20)
    along = lambda values: np.ravel(values)[entries]  # noqa: E731
    return Probe(leaf, offset, rows, along, entries, tolerance, found)


def _random(flat: Flat, leaf: Named, offset: int, matrix: np.ndarray, scatter: float) -> Probe:
    """Along a few directions of the whole leaf."""
    sizes = np.linalg.norm(matrix.astype(np.float64), axis=1)
    rows = differences.weighted(matrix, sizes, offset, flat.x.size)
    tolerance = _tolerance(flat, leaf)
    found = differences.slopes(flat, rows, len(matrix), scatter, tolerance / 20)
    along = lambda values: matrix @ np.ravel(values) / sizes  # noqa: E731
    return Probe(leaf, offset, rows, along, None, tolerance, found)


def _tolerance(flat: Flat, leaf: Named) -> float:
    unit = max(eps(leaf.dtype), flat.inside)
    return max(40 * unit, unit ** (2 / 3))


def _at_kinks(probe: Probe, whole: float = 0.0) -> np.ndarray:
    return differences.kinks(probe.slopes, _share(probe, whole))


def _share(probe: Probe, whole: float) -> float:
    """What one slope may be wrong by without notice."""
    found = probe.slopes
    size = float(np.linalg.norm(found.value[np.isfinite(found.error)]))
    least = max(probe.tolerance * size, eps(probe.leaf.dtype) * whole)
    return least / np.sqrt(max(1, len(found.value)))


def _idle(flat: Flat, moves: Moving, probes: list[Probe]) -> set[int]:
    """The leaves that f does not depend on, as far as its graph tells; else, its values."""
    if flat.graph is not None:
        read = reads(flat.graph)
        return {k for k in range(len(probes)) if not read[k]}
    still = [not probe.slopes.value.any() and not probe.slopes.rounding.any() for probe in probes]
    return {k for k, idle in enumerate(still) if idle}


def whole_size(probes: list[Probe]) -> float:
    """‖∇f‖ by the differences; a leaf's projections hold their share of its square."""
    squares = [
        np.mean(probe.slopes.value**2) * probe.leaf.values.size
        for probe in probes
        if probe.slopes.value.size
    ]
    return float(np.sqrt(np.nansum(squares)))


def _leaves(flat: Flat, moves: Moving, probes: list[Probe], scatter: float) -> list[Leaf]:
    """What the probes say, with room for rounding where it may be what is wrong."""
    idle, whole, reach = _idle(flat, moves, probes), whole_size(probes), _reach(flat)
    leaves = [_leaf(probe, whole, k in idle) for k, probe in enumerate(probes)]
    for k, leaf in enumerate(leaves):
        rounding = 1e3 * eps(leaf.dtype) * max(reach, whole)
        if leaf.bound < leaf.distance < max(0.03 * np.linalg.norm(leaf.expected), rounding):
            leaves[k] = _conditioned(leaf, probes[k], flat, scatter)
    return leaves


def _leaf(probe: Probe, whole: float, idle: bool) -> Leaf:
    """What the probe says: the decided slopes, and how far the gradient may be from them."""
    found, (name, dtype, values) = probe.slopes, probe.leaf
    share, candidate = _share(probe, whole), probe.along(values)
    expected, error = found.value.copy(), found.error.copy()
    kinks = differences.kinks(found, share)
    low, high = differences.sides(found)
    expected[kinks] = np.clip(candidate, low, high)[kinks]
    error[kinks] = found.jump_error[kinks]
    open_ = differences.unsettled(found, share) & ~kinks
    if probe.entries is None:  # many kinks along one direction: their slopes need not nest
        open_ |= kinks & (expected != candidate)
    kept = np.flatnonzero(~open_)
    size, doubt = float(np.linalg.norm(expected[kept])), float(np.linalg.norm(error[kept]))
    bound = probe.tolerance * max(size, float(np.linalg.norm(high[kinks & ~open_]))) + 3 * doubt
    if 0 < size <= 10 * doubt:  # zero as far as the differences tell
        bound += 64 * eps(dtype) * whole
    where = None if probe.every and not open_.any() else _places(probe, kept)
    place = _places(probe, np.arange(len(found.value)))
    between = tuple(
        (name + place(k), float(candidate[k]), float(low[k]), float(high[k]))
        for k in map(int, np.flatnonzero(kinks & ~open_))
    )
    undecided = tuple(name + place(k) for k in map(int, np.flatnonzero(open_)))
    measure = lambda other: probe.along(other)[kept]  # noqa: E731
    return Leaf(
        name, values.shape, dtype, expected[kept], values, bound, measure, where, undecided,
        between, idle,
    )  # fmt: skip


def _places(probe: Probe, kept: np.ndarray) -> Callable[[int], str]:
    """The k-th kept slope in words."""

    def place(k: int) -> str:
        if probe.entries is None:
            return f" along direction {kept[k]}"
        index = np.unravel_index(probe.entries[kept[k]], probe.leaf.values.shape)
        return f"[{', '.join(map(str, index))}]" if index else ""

    return place


def _reach(flat: Flat) -> float:
    """How much the gradient changes over a distance of ‖x‖, by f″ along one direction."""
    u = np.random.default_rng(4).choice([-1.0, 1.0], flat.x.size) / np.sqrt(max(1, flat.x.size))
    (above, below), _ = (v[0] for v in flat.along(flat.x, u[None], np.array([[0.01, -0.01]])))
    curvature = abs(above + below - 2 * flat.cost) / 1e-4
    size = float(np.linalg.norm(flat.x))
    return curvature * size if np.isfinite(curvature) else 0.0


def _conditioned(leaf: Leaf, probe: Probe, flat: Flat, scatter: float) -> Leaf:
    """The leaf with room for rounding that no formula avoids.

    An error no larger than what the gradient changes by where the arguments, and all results on the
    way, are off in their last place is rounding: of a sum that cancels, say.
    """
    signs = np.random.default_rng(2).choice([-1.0, 1.0], flat.x.size)
    moved = flat.x * (1 + eps(leaf.dtype) * signs)
    along = flat.shaken() if flat.shaken else flat.along
    nearby = flat._replace(x=moved, cost=value_at(along, moved), along=along)
    count = len(probe.slopes.value)
    there = differences.slopes(nearby, probe.rows, count, scatter, probe.tolerance / 20)
    settled = ~(
        differences.unsettled(there, 0.0)
        | differences.unsettled(probe.slopes, 0.0)
        | differences.kinks(there, 0.0)
        | differences.kinks(probe.slopes, 0.0)
    )
    change = np.linalg.norm((there.value - probe.slopes.value)[settled])
    return dataclasses.replace(leaf, bound=leaf.bound + 8 * float(change))


def _differences(flat: Flat, leaves: list[Leaf], scatter: float) -> str:
    """How the differences were taken."""
    text = [f"differences: in {flat.dtype}, of f = {flat.cost:.6g} ± {scatter:.1g}", *flat.notes]
    between = [kink for leaf in leaves for kink in leaf.kinks]
    text += [_kink(*kink) for kink in between[:SHOWN]]
    if len(between) > SHOWN:
        text.append(f"… and {len(between) - SHOWN} more kinks")
    if open_ := [name for leaf in leaves for name in leaf.undecided]:
        shown = ", ".join(open_[:SHOWN]) + (", …" if len(open_) > SHOWN else "")
        text.append(f"no slope that settles, {_cause(flat)}: {shown}")
    return "\n".join(text)


def _kink(name: str, value: float, low: float, high: float) -> str:
    inside = low <= value <= high
    return (
        f"{name} is at a kink: {value:.6g} is {'between' if inside else 'outside'} "
        f"the one-sided slopes [{low:.6g}, {high:.6g}]"
    )


def _cause(flat: Flat) -> str:
    """Why slopes may not settle."""
    if flat.graph is not None and (made := made_of(flat.graph) & SPECTRAL):
        return (
            f"f takes {', '.join(sorted(made))}: where eigenvalues or singular values meet, "
            "vectors have no gradient"
        )
    return "f has a crossed kink or a jump there"


def _taylor(flat: Flat, probes: list[Probe], leaves: list[Leaf], scatter: float) -> str:
    """The rate of the Taylor remainder, along the discrepancy where there is one."""
    g = np.concatenate([np.ravel(leaf.candidate) for leaf in leaves])
    if not np.isfinite(g).all() or not g.size:
        return "Taylor remainder: the gradient is not finite"
    u = np.random.default_rng(3).choice([-1.0, 1.0], g.size)
    whole = whole_size(probes)
    for probe in probes:
        if probe.entries is not None:  # not across the kinks
            share = _share(probe, whole)
            rough = _at_kinks(probe, whole) | differences.unsettled(probe.slopes, share)
            u[probe.offset + probe.entries[rough]] = 0
    wrong = [(probe, leaf) for probe, leaf in zip(probes, leaves, strict=True) if not leaf.ok]
    if wrong:
        u = np.zeros(g.size)
        for probe, leaf in wrong:
            gap = np.nan_to_num(probe.along(leaf.candidate) - probe.slopes.value)
            for k in range(len(gap)):
                u += gap[k] * probe.rows(np.array([k]))[0]
    u /= np.linalg.norm(u) or 1
    doubt = 4 * max(eps(leaf.dtype) for leaf in leaves) * float(np.linalg.norm(g))
    rate = differences.taylor_rate(flat, u, float(g @ u), scatter, doubt)
    if rate is None:
        return "Taylor remainder: no clean power of h (f linear along it, or kinks on the way)"
    along = "along the discrepancy" if wrong else "along a random direction"
    return f"Taylor remainder: h^{rate:.2f} {along} (2 where the gradient is right, 1 where wrong)"
