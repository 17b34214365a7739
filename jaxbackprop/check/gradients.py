"""A gradient against finite differences of the function that it belongs to."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbackprop.check import differences
from jaxbackprop.check.compare import Comparison
from jaxbackprop.check.function import Flat, flatten
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import Named, check_form, eps

EVERY = 2000  # up to so many numbers in all, every one is moved
DIRECTIONS = 32  # random ones, for each leaf of a larger argument
NAMES = ("differences", "gradient")
TOLERANCE = "‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their error in each leaf"


def check_gradients(
    f: Callable[..., Any],
    *args: Any,
    gradient: Any = None,
    argnums: int | tuple[int, ...] = 0,
) -> Comparison:
    """Is `gradient` the gradient of the scalar function f at args?

    `gradient` is what is being checked: a pytree of values with the structure of args[argnums] (of
    a tuple of them where argnums is one), or a function of args that returns it; by default
    jax.grad(f, argnums), which runs the rules of every custom_vjp in f. `args` are pytrees of
    arrays of jax, NumPy or PyTorch, and f need not be traceable by jax.

    The differences are taken on a float64 copy of all floating point arguments where f takes one,
    at every number up to 2,000 in all and along 32 random directions of each leaf beyond. A leaf is
    right where ‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their own error, with eps of the
    gradient's dtype. Entries at which f has a kink have no gradient: they are counted, and are
    neither right nor wrong.

    Raises ValueError where f is not scalar, real, finite and the same in two calls; where the
    argument is not real floating point; or, naming the leaf, where the gradient's structure, shapes
    or dtypes are not the argument's.
    """
    flat = flatten(f, args, argnums)
    chosen = args[argnums] if isinstance(argnums, int) else tuple(args[k] for k in argnums)
    candidate = _candidate(f, args, gradient, argnums)
    whose = ("the argument", "the gradient")
    _, found = check_form(chosen, candidate, whose, dtypes=gradient is not None)
    scatter = differences.noise(flat)
    probes = _probes(flat, found, scatter)
    leaves = [_leaf(probe, whole_size(probes)) for probe in probes]
    for k, leaf in enumerate(leaves):
        if leaf.bound < leaf.distance < 0.03 * np.linalg.norm(leaf.expected):
            leaves[k] = _conditioned(leaf, probes[k], flat, scatter)
    notes = (_differences(flat, leaves, scatter), _taylor(flat, probes, leaves, scatter))
    return Comparison(tuple(leaves), NAMES, TOLERANCE, notes)


def _candidate(f: Callable, args: tuple, gradient: Any, argnums: int | tuple[int, ...]) -> Any:
    """The gradient to check as values."""
    if gradient is not None:
        return gradient(*args) if callable(gradient) else gradient
    try:
        return jax.grad(f, argnums)(*args)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError("jax cannot trace f: `gradient` has to be given") from error


class Probe(NamedTuple):
    """Directions within one leaf, and the slopes of f along them."""

    leaf: Named
    offset: int
    rows: Callable[[np.ndarray], np.ndarray]  # the k-th directions among all numbers
    along: Callable[[np.ndarray], np.ndarray]  # a gradient's slopes along them
    every: bool  # they are the coordinates
    tolerance: float
    slopes: differences.Slopes


def _probes(flat: Flat, leaves: list[Named], scatter: float) -> list[Probe]:
    generator, probes, offset, n = np.random.default_rng(1), [], 0, flat.x.size
    for leaf in leaves:
        size, unit = leaf.values.size, eps(leaf.dtype)
        tolerance = max(40 * unit, unit ** (2 / 3))
        every = n <= EVERY or size <= DIRECTIONS
        if every:
            rows, along = differences.unit_vectors(offset, n), np.ravel
        else:
            matrix = generator.choice(np.array([-1, 1], np.int8), (DIRECTIONS, size))
            rows = differences.signs(matrix, offset, n)
            along = lambda values, matrix=matrix: matrix @ np.ravel(values) / matrix.shape[1] ** 0.5  # noqa: E731
        count = size if every else DIRECTIONS
        found = differences.slopes(flat, rows, count, scatter, tolerance / 20)
        probes.append(Probe(leaf, offset, rows, along, every, tolerance, found))
        offset += size
    return probes


def whole_size(probes: list[Probe]) -> float:
    """‖∇f‖ by the differences; a leaf's projections hold their share of its square."""
    squares = [
        np.mean(probe.slopes.value**2) * probe.leaf.values.size
        for probe in probes
        if probe.slopes.value.size
    ]
    return float(np.sqrt(np.nansum(squares)))


def _leaf(probe: Probe, whole: float) -> Leaf:
    """What the probe says: the decided slopes, and how far the gradient may be from them."""
    found, (name, dtype, values) = probe.slopes, probe.leaf
    open_ = _open(probe, whole)
    kept = np.flatnonzero(~open_)
    expected, error = found.value[kept], float(np.linalg.norm(found.error[kept]))
    size = float(np.linalg.norm(expected))
    bound = probe.tolerance * size + 3 * error
    if 0 < size <= 10 * error:  # zero as far as the differences tell
        bound += 64 * eps(dtype) * whole
    where = None if probe.every and not open_.any() else _places(probe, kept)
    everything = _places(probe, np.arange(len(found.value)))
    return Leaf(
        name,
        values.shape,
        dtype,
        expected,
        values,
        bound,
        lambda candidate: probe.along(candidate)[kept],
        where,
        tuple(name + everything(k) for k in map(int, np.flatnonzero(open_))),
    )


def _open(probe: Probe, whole: float) -> np.ndarray:
    """Which slopes decide nothing."""
    found = probe.slopes
    size = float(np.linalg.norm(found.value[np.isfinite(found.error)]))
    least = max(probe.tolerance * size, eps(probe.leaf.dtype) * whole)
    return differences.undecided(found, least / np.sqrt(max(1, len(found.value))), whole)


def _places(probe: Probe, kept: np.ndarray) -> Callable[[int], str]:
    """The k-th kept slope in words."""

    def place(k: int) -> str:
        if not probe.every:
            return f" along direction {kept[k]}"
        index = np.unravel_index(kept[k], probe.leaf.values.shape)
        return f"[{', '.join(map(str, index))}]" if index else ""

    return place


def _conditioned(leaf: Leaf, probe: Probe, flat: Flat, scatter: float) -> Leaf:
    """The leaf with room for rounding that no formula avoids.

    An error no larger than what the gradient changes by where the arguments move in their last
    place is rounding: of a sum that cancels, say.
    """
    signs = np.random.default_rng(2).choice([-1.0, 1.0], flat.x.size)
    moved = flat.rounded(flat.x * (1 + eps(leaf.dtype) * signs))
    nearby = flat._replace(x=moved, cost=float(flat.values(moved[None])[0]))
    count = len(probe.slopes.value)
    there = differences.slopes(nearby, probe.rows, count, scatter, probe.tolerance / 20)
    change = np.linalg.norm((there.value - probe.slopes.value)[np.isfinite(there.error)])
    return dataclasses.replace(leaf, bound=leaf.bound + 8 * float(change))


def _differences(flat: Flat, leaves: list[Leaf], scatter: float) -> str:
    """How the differences were taken."""
    text = f"differences: in {flat.dtype}, of f = {flat.cost:.6g} ± {scatter:.1g}"
    if flat.why:
        text += f"\nf did not take a float64 copy of its arguments: {flat.why}"
    open_ = [name for leaf in leaves for name in leaf.undecided]
    if not open_:
        return text
    shown = ", ".join(open_[:4]) + (", …" if len(open_) > 4 else "")
    return f"{text}\ncrossed kink (f has no gradient there, or none that settles): {shown}"


def _taylor(flat: Flat, probes: list[Probe], leaves: list[Leaf], scatter: float) -> str:
    """The rate of the Taylor remainder, along the discrepancy where there is one."""
    g = np.concatenate([np.ravel(leaf.candidate) for leaf in leaves])
    if not np.isfinite(g).all() or not g.size:
        return "Taylor remainder: the gradient is not finite"
    u = np.random.default_rng(3).choice([-1.0, 1.0], g.size)
    whole = whole_size(probes)
    for probe in probes:
        if probe.every:  # not across the kinks
            u[probe.offset + np.flatnonzero(_open(probe, whole))] = 0
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
