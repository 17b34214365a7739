"""Slopes of a function along directions: central differences, extrapolated, told from kinks.

Each slope is taken at three steps h, h/4, h/16; the errors of order h² and h⁴ are eliminated
(Richardson, 1911; Ridders, 1982), and the last elimination says how good the result is. Where that
is not enough, a kink lies between, or the curvature is large: smaller steps follow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxbackprop.check.function import Flat
from jaxbackprop.check.leaves import eps

STEPS = np.array([1, 1 / 4, 1 / 16])
ROUNDS, FINER, LOOKS = 4, 64, 2  # each round has steps so much finer; looks at a doubtful slope
# Distances of points on a staircase, and orders of their differences:
APART = ((2e-4, 5), (2e-3, 7))
FAR, COARSER = ((2e-2, 9), (1e-1, 9)), 1e-4  # where numbers have such an eps
COARSE, WIDER = 1e-10, 16  # values that scatter so much are first taken at wider steps
AT_ONCE = 8  # directions, fewer where each point has many numbers
NUMBERS = 400_000  # in the directions that are taken at once


class Slopes(NamedTuple):
    """One number a direction: ∂f, its error, and the jump of ∂f there (0 on a smooth function)."""

    value: np.ndarray
    error: np.ndarray
    jump: np.ndarray
    jump_error: np.ndarray
    rounding: np.ndarray  # what of the error is due to the values of f, not to the step


def noise(flat: Flat) -> float:
    """How far the values of f scatter: high differences of neighbouring points (Hamming, 1962).

    At least the rounding of the result; more where f computes inside in less precision. Where all
    of some neighbours are equal f is a staircase of such numbers, and its steps may be wider than
    the distance of the points: then they are taken further apart. No two distances are the same:
    by one of them each point may fall on the same place of a step.
    """
    if not flat.x.size:
        return 0.0
    draw = np.random.default_rng(0)
    u = draw.choice([-1.0, 1.0], flat.x.size) * draw.uniform(0.5, 1.5, flat.x.size)
    u = u[None] / np.linalg.norm(u)
    scatter, place = 0.0, np.arange(1, 13)[:, None]
    coarse = max(flat.inside, eps(flat.dtype)) > COARSER
    for apart, order in ((1e-5, 3), *APART, *(FAR if coarse else ())):
        t = apart * (20 * place + (1 + place / 16) * np.arange(order + 1))
        f = flat.along(flat.x, u, t.reshape(1, -1))[0].reshape(t.shape)
        gain = math.sqrt(math.comb(2 * order, order))  # of the differences of unit noise
        scatter = max(scatter, float(np.median(np.abs(np.diff(f, order)))) / gain)
        if (np.ptp(f) == 0 and not coarse) or not (np.diff(f) == 0).any():
            break
    return max(floor(flat), 3 * scatter)


def floor(flat: Flat) -> float:
    """The rounding of f's own result."""
    return 2 * eps(flat.dtype) * abs(flat.cost)


def slopes(
    flat: Flat, rows: Callable[[np.ndarray], np.ndarray], count: int, scatter: float, goal: float
) -> Slopes:
    """∂f along `count` unit directions; rows(ks) are the k-th ones, (len(ks), n).

    `goal`: the error relative to their root mean square that more steps are spent on.
    """
    if not count:
        return Slopes(*np.zeros((5, 0)))
    steps = _steps(flat, scatter)
    best = _round(flat, rows, np.arange(count), steps[0], scatter, first=True)
    for h in steps[1:]:
        finite = best.value[np.isfinite(best.value)]
        size = np.sqrt(np.mean(finite**2)) if finite.size else 0.0
        reachable = scatter / h  # what rounding leaves of the last round's differences
        todo = np.flatnonzero(~(best.error <= max(goal * size, reachable)))
        if not todo.size:
            break
        new = _round(flat, rows, todo, h, scatter, first=False)
        better = ~(best.error[todo] <= new.error)
        for old, found in zip(best, new, strict=True):
            old[todo[better]] = found[better]
    return best


def contradicted(
    flat: Flat, rows: Callable[[np.ndarray], np.ndarray], found: Slopes, scatter: float
) -> np.ndarray:
    """Which of these slopes smaller steps contradict; `found` then has the others.

    Where many kinks are crossed on the way, some slope converges by chance, to a wrong value.
    """
    which = np.arange(len(found.value))
    wrong = np.zeros(len(which), bool)
    for h in _steps(flat, scatter)[1 : 1 + LOOKS]:
        new = _round(flat, rows, which, h, scatter, first=False)
        apart = np.abs(new.value - found.value) > 3 * (new.error + found.error)
        wrong |= apart
        for old, smaller in zip(found, new, strict=True):
            old[apart] = smaller[apart]
    return wrong


def _steps(flat: Flat, scatter: float) -> list[float]:
    """The steps of each round, powers of two."""
    relative = max(scatter / max(abs(flat.cost), 1e-300), 1e-11)
    h = 2.0 ** np.round(np.log2(min(relative ** (1 / 5), 1)))
    wider = [min(WIDER * h, 1.0)] if relative > COARSE else []
    return [*wider, *(h / FINER**k for k in range(ROUNDS))]


def _round(
    flat: Flat, rows: Callable, which: np.ndarray, h: float, scatter: float, first: bool
) -> Slopes:
    some = max(1, min(AT_ONCE, NUMBERS // max(1, flat.x.size)))
    parts = [
        _three_steps(flat, rows(which[k : k + some]), h, scatter, first)
        for k in range(0, len(which), some)
    ]
    return Slopes(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _three_steps(flat: Flat, u: np.ndarray, h: float, scatter: float, first: bool) -> Slopes:
    """u: (c, n). Steps grow with the coordinate that moves, in powers of two."""
    size = np.max(np.abs(flat.x) * (np.abs(u) > 0.5), axis=1, initial=1.0)
    scale = 2.0 ** np.floor(np.log2(size))
    steps = h * scale[:, None, None] * STEPS[:, None] * np.array([1.0, -1.0])  # (c, 3, 2)
    both = flat.along(flat.x, u, steps.reshape(len(u), -1))
    f, t = (v.reshape(steps.shape) for v in both)
    with np.errstate(all="ignore"):
        above, below = ((f[..., k] - flat.cost) / t[..., k] for k in (0, 1))
        D = (f[..., 0] - f[..., 1]) / (t[..., 0] - t[..., 1])
        value, error = _extrapolated(D)
        jump, jump_error = _without_curvature(above - below)
        # Later, steps may be too small for f; on a staircase they may be at any time.
        still = first & (scatter <= floor(flat)) & (f == flat.cost).all(axis=(1, 2))
        rounding = np.where(still, 0, 2 * scatter / t[:, -1, 0])
    error = np.where(np.isfinite(value), error + rounding, np.inf)
    return Slopes(value, error, jump, jump_error + 4 * rounding, rounding)


def _extrapolated(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D(h) = f′ + c h² + d h⁴ + …: the h² terms go, then the h⁴ term, which bounds the error.

    Where D does not converge like h² (a kink, a jump of f″), its last step bounds the error.
    """
    once = (16 * D[:, 1:] - D[:, :-1]) / 15
    twice = (256 * once[:, 1] - once[:, 0]) / 255
    first, last = np.abs(np.diff(D)).T
    return twice, np.where(last > first / 8, last, np.abs(twice - once[:, 1]))


def _without_curvature(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S(h) = jump + h f″ + …: the slope on the right less that on the left."""
    once = (4 * S[:, 1:] - S[:, :-1]) / 3
    return once[:, 1], np.abs(once[:, 1] - once[:, 0])


def kinks(found: Slopes, share: float) -> np.ndarray:
    """Where f has a slope on the left and another on the right.

    `share`: what a slope may be wrong by without notice.
    """
    jump = np.abs(found.jump)
    return (jump > 10 * found.jump_error) & (jump > share) & np.isfinite(found.error)


def sides(found: Slopes) -> tuple[np.ndarray, np.ndarray]:
    """The lesser and the greater of the one-sided slopes."""
    half = np.abs(found.jump) / 2
    return found.value - half, found.value + half


def unsettled(found: Slopes, share: float) -> np.ndarray:
    """Which slopes are no test: the differences do not settle, and not because of rounding."""
    finite = found.value[np.isfinite(found.error)]
    size = np.sqrt(np.mean(finite**2)) if finite.size else 0.0
    rough = (found.error > share) & (found.error > 10 * found.rounding)
    return ~np.isfinite(found.error) | (
        rough & (found.error > 0.01 * np.maximum(np.abs(found.value), size))
    )


def taylor_rate(
    flat: Flat, direction: np.ndarray, slope: float, scatter: float, doubt: float
) -> float | None:
    """The power p in |f(x + t u) − f(x) − t ∂f| ~ tᵖ: 2 where the slope is right, 1 where wrong.

    `doubt`: the rounding of the slope. None where the remainder is no clean power: below rounding
    at every step (f is linear along u) or bent by kinks on the way.
    """
    t = 2.0 ** -np.arange(3, 25.0)
    f, t = (v[0] for v in flat.along(flat.x, direction[None], t[None]))
    remainder = np.abs(f - flat.cost - t * slope)
    lost = np.flatnonzero(~(remainder > 50 * scatter + t * doubt))
    log_t, log_r = np.log2(np.stack([np.abs(t), remainder]) + 1e-300)
    local = np.diff(log_r) / np.minimum(np.diff(log_t), -1e-300)
    for end in range(lost[0] - 1 if lost.size else len(local), 3, -1):  # the smallest steps first
        if np.ptp(local[end - 4 : end]) < 0.3:
            return float(np.mean(local[end - 4 : end]))
    return None


def unit_vectors(offset: int, n: int, entries: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Some coordinates of the leaf that begins at `offset`, as directions among n."""

    def rows(ks: np.ndarray) -> np.ndarray:
        u = np.zeros((len(ks), n))
        u[np.arange(len(ks)), offset + entries[ks]] = 1
        return u

    return rows


def weights(draw: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Rows of whole numbers about normally distributed: no two places are likely to cancel."""
    return np.clip(np.rint(32 * draw.standard_normal((count, size), np.float32)), -127, 127).astype(
        np.int8
    )


def weighted(
    matrix: np.ndarray, sizes: np.ndarray, offset: int, n: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The rows of a leaf, of these sizes, as unit directions among n."""

    def rows(ks: np.ndarray) -> np.ndarray:
        u = np.zeros((len(ks), n))
        u[:, offset : offset + matrix.shape[1]] = matrix[ks] / sizes[ks, None]
        return u

    return rows
