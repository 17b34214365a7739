"""Any scalar function of pytrees as a function of one flat vector, in float64 where it can be."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.check.arguments import Moving
from jaxbackprop.check.contents import coarsest, made_of
from jaxbackprop.check.deciding import Decisions, decides
from jaxbackprop.check.leaves import FLOATING, dtype_name, eps, host
from jaxbackprop.check.traced import Traced, along_lines, is_settled, own_value, traced
from jaxbackprop.check.widened import CALLBACKS

CALLS, SECONDS = 8, 0.5  # f is called again so often, or so long, to see that it does not change
NOTES = {
    "stop_gradient": "what f stops (stop_gradient) is held",
    "random_gamma": "what f draws of a gamma distribution moves as jax says, with the distribution",
}

Along = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Flat(NamedTuple):
    """f of n numbers. `along(x, u, t)`: f at x + t u for each line u (c, n) and its steps t (c, s),
    and t as the numbers of x allow it."""

    x: np.ndarray
    cost: float
    dtype: str  # that f computes in, as far as its result tells
    notes: tuple[str, ...]  # how f was evaluated, where it is not what one expects
    along: Along
    graph: Any = None  # f's own, where jax can trace it
    inside: float = 0.0  # eps of the coarsest numbers in the graph
    shaken: Callable[[int], Along] | None = None  # as if every result had been rounded otherwise
    turned: Callable[[], "Flat"] | None = None  # f's own decisions where float64's are others


class Refused(ValueError):
    """f itself has no gradient to check: another precision would not help."""


def flatten(f: Callable[..., Any], moving: Moving) -> Flat:
    """f in float64, if it is the same function there; else in its own precision.

    Where jax can trace f, its graph is evaluated in float64: with the random numbers of its own
    precision, and with its own decisions where a threshold falls otherwise in float64. Any other f
    is given a float64 copy of its arguments, and is asked whether the value is the same.

    Raises ValueError where f is not scalar, not real, not finite at the arguments or gives another
    value when it is called again.
    """
    found = traced(f, moving)
    if found is None:
        return _opaque(f, moving)
    _scalar(found.shape)
    return _of_graph(found, moving, _own(found, f, moving))


def _own(found: Traced, f: Callable, moving: Moving) -> float:
    """The value in f's own precision, the same each time."""
    if made_of(found.graph) & CALLBACKS or not is_settled(found, f, moving):
        return _again(lambda: f(*moving.copies()))[0]
    return _finite(own_value(found, moving))


def _scalar(value: Any) -> None:
    """Raises ValueError where the value is no real number."""
    if shape_of(value) != ():
        raise Refused(f"f returns an array of shape {shape_of(value)}, expected a scalar")
    if dtype_name(value) not in FLOATING:
        raise Refused(f"f returns {dtype_name(value)}, expected real floating point")


def _finite(cost: float) -> float:
    if not np.isfinite(cost):
        raise Refused(f"f is {cost} at the arguments: there is no gradient to check")
    return cost


def _again(call: Callable[[], Any]) -> tuple[float, str]:
    """The value and its dtype: checked, and the same in every call."""
    first = call()
    _scalar(first)
    cost = _finite(float(host(first)))
    start = time.perf_counter()
    for k in range(CALLS):
        if k and time.perf_counter() - start > SECONDS:
            break
        again = float(host(call()))
        if again != cost:
            raise Refused(
                f"f is not deterministic: {cost!r}, then {again!r}, at the same arguments; give it "
                "a key or a seed, so that it draws the same numbers in every call"
            )
    return cost, dtype_name(first)


# --- a function that jax can trace ---


def _of_graph(found: Traced, moving: Moving, own: float) -> Flat:
    graph = found.graph
    x, kind = moving.flat(), str(graph.out_avals[0].dtype)
    decided, along = Decisions.NONE, along_lines(found, moving, Decisions.NONE)
    cost = value_at(along, x)
    notes = [note for name, note in NOTES.items() if name in made_of(graph)]
    if not same(cost, own, kind):
        held = along_lines(found, moving, Decisions.ALL)
        again = value_at(held, x)
        if abs(again - own) < abs(cost - own) / 2:  # a decision, not rounding
            decided, along, cost = Decisions.ALL, held, again
            notes.append("what f decides (comparisons, integer casts, steps) is held as it is in "
                f"{kind}: float64 decides otherwise")  # fmt: skip
    inside = coarsest(graph)
    if inside > max(eps(kind), *(eps(dtype_name(v)) for v in moving.leaves)):
        notes.append(f"f computes with numbers of eps {inside:.2g} inside: it is held to these")
    # Rounding that turns a decision is another matter.
    calm = Decisions.CALM if decides(graph) else Decisions.NONE
    as_here = Decisions.ALL if decided is Decisions.ALL else calm
    shaken = functools.partial(along_lines, found, moving, as_here)
    flat = Flat(x, cost, "float64", tuple(notes), along, graph, inside, shaken)
    if decided is Decisions.ALL or not decides(graph):
        return flat
    return flat._replace(turned=functools.cache(lambda: _turned(flat, found, moving)))


def _turned(flat: Flat, found: Traced, moving: Moving) -> Flat:
    """f with its own decisions, where those of float64 are others at the arguments."""
    along = along_lines(found, moving, Decisions.TURNED)
    shaken = functools.partial(along_lines, found, moving, Decisions.ALL)
    return flat._replace(cost=value_at(along, flat.x), along=along, shaken=shaken)


def value_at(along: Along, x: np.ndarray) -> float:
    """f(x)."""
    return float(along(x, np.zeros((1, x.size)), np.zeros((1, 1)))[0][0, 0])


def same(cost: float, own: float, dtype: str) -> bool:
    """Two values of one function, in two precisions."""
    return abs(cost - own) <= 2000 * eps(dtype) * max(abs(cost), abs(own))


# --- any other function ---


def _opaque(f: Callable, moving: Moving) -> Flat:
    """In float64 if f takes it and is the same function there."""
    own, dtype = _again(lambda: f(*moving.copies()))
    with precision(True):
        widened = moving.widened()
        try:
            cost, kind = _again(lambda: f(*widened.copies()))
            why = "" if same(cost, own, dtype) else f"its value is {cost:.6g} there, {own:.6g} here"
        except Refused:
            raise
        except Exception as error:  # whatever f raises because it does not take float64
            why = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if not why:
        return _one_by_one(f, widened, cost, kind, wide=True)
    note = f"f did not take a float64 copy of its arguments: {why}"
    return _one_by_one(f, moving, own, dtype, wide=False)._replace(notes=(note,))


def _one_by_one(f: Callable, moving: Moving, cost: float, dtype: str, wide: bool) -> Flat:
    rounded = _rounded(moving.leaves)

    def along(x: np.ndarray, u: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, taken = np.empty(t.shape), np.empty(t.shape)
        with precision(wide):
            for c, s in np.ndindex(*t.shape):
                point = rounded(x + t[c, s] * u[c])
                values[c, s] = float(host(f(*moving.rebuild(moving.split(point)))))
                taken[c, s] = (point - x) @ u[c]
        return values, taken

    return Flat(moving.flat(), cost, dtype, (), along)


def precision(wide: bool) -> contextlib.AbstractContextManager:
    """float64 allowed, or the caller's own setting."""
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def shape_of(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _rounded(leaves: list) -> Callable[[np.ndarray], np.ndarray]:
    """A point as the leaves' dtypes hold it."""
    dtypes = [dtype_name(leaf) if hasattr(leaf, "dtype") else "float64" for leaf in leaves]
    if all(dtype == "float64" for dtype in dtypes):
        return lambda point: point
    ends = np.cumsum([math.prod(shape_of(leaf)) for leaf in leaves])[:-1]

    def rounded(point: np.ndarray) -> np.ndarray:
        parts = zip(np.split(point, ends), dtypes, strict=True)
        return np.concatenate([part.astype(jnp.dtype(d)).astype(float) for part, d in parts])

    return rounded
