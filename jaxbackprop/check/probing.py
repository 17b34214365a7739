"""The slopes of a function within each leaf: what any gradient of it is held against."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxbackprop.check import differences
from jaxbackprop.check.arguments import Moving
from jaxbackprop.check.function import Flat, shape_of
from jaxbackprop.check.leaves import dtype_name, eps

EVERY = 2000  # up to so many numbers in all, every one is moved
DIRECTIONS, LEAST = 32, 4  # random ones, for each leaf of a larger argument
ALL_DIRECTIONS = 320  # together, where there are many leaves


class Probe(NamedTuple):
    """Directions within one leaf, and the slopes of f along them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    rows: Callable[[np.ndarray], np.ndarray]  # the k-th directions among all numbers
    along: Callable[[np.ndarray], np.ndarray]  # a gradient's slopes along them
    entries: np.ndarray | None  # the numbers moved one by one; None: random directions
    tolerance: float
    slopes: differences.Slopes

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def every(self) -> bool:
        return self.entries is not None and len(self.entries) == self.size


class Measured(NamedTuple):
    """f and its slopes, leaf by leaf, whichever gradient is held against them."""

    flat: Flat
    probes: list[Probe]
    scatter: float  # of the values of f


def measured(flat: Flat, moves: Moving, done: Callable[[], None] = lambda: None) -> Measured:
    """`done` is called after each leaf."""
    scatter, generator, offset = differences.noise(flat), np.random.default_rng(1), 0
    count = int(np.clip(ALL_DIRECTIONS // max(1, len(moves.leaves)), LEAST, DIRECTIONS))
    probes = []
    for name, leaf in zip(moves.names, moves.leaves, strict=True):
        own = _Leaf(name, dtype_name(leaf), shape_of(leaf), offset)
        size = math.prod(own.shape)
        if flat.x.size <= EVERY or size <= count:
            probe = _moved(flat, own, np.arange(size), scatter)
        else:
            matrix = differences.weights(generator, count, size)
            probe = _random(flat, own, matrix, scatter)
            if at_kinks(probe).mean() > 0.5:  # along a direction many kinks mix
                entries = np.sort(generator.choice(size, count, replace=False))
                probe = _moved(flat, own, entries, scatter)
        probes.append(probe)
        offset += size
        done()
    return Measured(flat, probes, scatter)


class _Leaf(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _moved(flat: Flat, leaf: _Leaf, entries: np.ndarray, scatter: float) -> Probe:
    """Some numbers of the leaf, one by one."""
    rows = differences.unit_vectors(leaf.offset, flat.x.size, entries)
    allowed = tolerance(flat, leaf.dtype)
    found = differences.slopes(flat, rows, len(entries), scatter, allowed / 20)
    along = lambda values: np.ravel(values)[entries]  # noqa: E731
    return Probe(*leaf, rows, along, entries, allowed, found)


def _random(flat: Flat, leaf: _Leaf, matrix: np.ndarray, scatter: float) -> Probe:
    """Along a few directions of the whole leaf."""
    sizes = np.linalg.norm(matrix.astype(np.float64), axis=1)
    rows = differences.weighted(matrix, sizes, leaf.offset, flat.x.size)
    allowed = tolerance(flat, leaf.dtype)
    found = differences.slopes(flat, rows, len(matrix), scatter, allowed / 20)
    along = lambda values: matrix @ np.ravel(values) / sizes  # noqa: E731
    return Probe(*leaf, rows, along, None, allowed, found)


def tolerance(flat: Flat, dtype: str) -> float:
    """What a leaf of this dtype may be wrong by, relatively."""
    unit = max(eps(dtype), flat.inside)
    return max(40 * unit, unit ** (2 / 3))


def at_kinks(probe: Probe, whole: float = 0.0) -> np.ndarray:
    return differences.kinks(probe.slopes, share(probe, whole))


def share(probe: Probe, whole: float) -> float:
    """What one slope may be wrong by without notice, where ‖∇f‖ is `whole`."""
    found = probe.slopes
    size = float(np.linalg.norm(found.value[np.isfinite(found.error)]))
    least = max(probe.tolerance * size, eps(probe.dtype) * whole)
    return least / np.sqrt(max(1, len(found.value)))


def whole_size(probes: list[Probe]) -> float:
    """‖∇f‖ by the differences; a leaf's projections hold their share of its square."""
    squares = [
        np.mean(probe.slopes.value**2) * probe.size for probe in probes if probe.slopes.value.size
    ]
    return float(np.sqrt(np.nansum(squares)))
