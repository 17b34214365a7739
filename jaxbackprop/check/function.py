"""Any scalar function of pytrees as a function of one flat vector, in float64 where it can be."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.check.arguments import Moving
from jaxbackprop.check.leaves import FLOATING, dtype_name, eps, host
from jaxbackprop.check.widened import coarsest, evaluate_wide, stops, wide

BLOCK, LARGE = 48, 100_000  # points a call, fewer where each has many numbers
QUICK = {
    "xla_backend_optimization_level": 0
}  # a small function takes longer to compile than to run
CALLS, SECONDS = 8, 0.5  # f is called again so often, or so long, to see that it does not change


class Flat(NamedTuple):
    """f of n numbers. `values` maps points (r, n) to (r,), `rounded` points to those f can see."""

    x: np.ndarray
    cost: float
    dtype: str  # that f computes in, as far as its result tells
    notes: tuple[str, ...]  # how f was evaluated, where it is not what one expects
    values: Callable[[np.ndarray], np.ndarray]
    rounded: Callable[[np.ndarray], np.ndarray]
    graph: Any = None  # f's own, where jax can trace it
    inside: float = 0.0  # eps of the coarsest numbers in the graph


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
    graph = _traced(f, moving)
    if graph is None:
        return _opaque(f, moving)
    own, _ = _again(lambda: f(*moving.copies()))
    return _of_graph(graph, moving, own)


def _traced(f: Callable, moving: Moving) -> Any:
    """f's graph as a function of the moving leaves, or None where jax cannot trace it."""
    if any(hasattr(leaf, "detach") for leaf in moving.leaves):
        return None
    try:
        return jax.make_jaxpr(lambda *leaves: f(*moving.rebuild(leaves)))(*moving.leaves)
    except Exception:  # NumPy's functions, float(), an `if`: f then sees arrays, one at a time
        return None


def _again(call: Callable[[], Any]) -> tuple[float, str]:
    """The value and its dtype: checked, and the same in every call."""
    first = call()
    if shape_of(first) != ():
        raise Refused(f"f returns an array of shape {shape_of(first)}, expected a scalar")
    if dtype_name(first) not in FLOATING:
        raise Refused(f"f returns {dtype_name(first)}, expected real floating point")
    cost = float(host(first))
    if not np.isfinite(cost):
        raise Refused(f"f is {cost} at the arguments: there is no gradient to check")
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


def _of_graph(graph: Any, moving: Moving, own: float) -> Flat:
    x = moving.flat()
    values = _of_rows(_wide_function(graph, moving, decided=False), moving)
    cost = float(values(x[None])[0])
    notes = ["what f stops (stop_gradient) is held"] if stops(graph) else []
    if not same(cost, own, str(graph.out_avals[0].dtype)):
        held = _of_rows(_wide_function(graph, moving, decided=True), moving)
        again = float(held(x[None])[0])
        if abs(again - own) < abs(cost - own) / 2:  # a decision, not rounding
            values, cost = held, again
            notes.append("what f decides (comparisons, integer casts, steps) is held as it is in "
                f"{graph.out_avals[0].dtype}: float64 decides otherwise")  # fmt: skip
    inside = coarsest(graph)
    own_eps = max(eps(str(graph.out_avals[0].dtype)), *(eps(dtype_name(v)) for v in moving.leaves))
    if inside > own_eps:
        notes.append(f"f computes with numbers of eps {inside:.2g} inside: it is held to these")
    rounded = lambda points: points  # noqa: E731
    return Flat(x, cost, "float64", tuple(notes), values, rounded, graph, inside)


def same(cost: float, own: float, dtype: str) -> bool:
    """Two values of one function, in two precisions."""
    return abs(cost - own) <= 2000 * eps(dtype) * max(abs(cost), abs(own))


def _wide_function(graph: Any, moving: Moving, decided: bool) -> Callable[[Any], Any]:
    leaves = [jnp.asarray(leaf) for leaf in moving.leaves]

    def at(row: Any) -> Any:
        parts, start = [], 0
        for leaf in leaves:
            end = start + leaf.size
            parts.append(row[start:end].reshape(leaf.shape))
            start = end
        return wide(evaluate_wide(graph, parts, leaves, decided)[0])

    return at


def _of_rows(at: Callable, moving: Moving) -> Callable[[np.ndarray], np.ndarray]:
    """f at each row of an array, compiled."""
    block = BLOCK if moving.size < LARGE else 6
    options = QUICK if moving.size < LARGE else None
    compiled = jax.jit(lambda rows: jax.lax.map(at, rows), compiler_options=options)

    def values(points: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            rows = -len(points) % block
            padded = np.concatenate([points, np.repeat(points[-1:], rows, 0)])
            parts = [compiled(padded[k : k + block]) for k in range(0, len(padded), block)]
            return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(points)]

    return values


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
    def values(points: np.ndarray) -> np.ndarray:
        with precision(wide):
            return np.array([float(host(f(*moving.rebuild(moving.split(row))))) for row in points])

    return Flat(moving.flat(), cost, dtype, (), values, _rounded(moving.leaves))


def precision(wide: bool) -> contextlib.AbstractContextManager:
    """float64 allowed, or the caller's own setting."""
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def shape_of(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _rounded(leaves: list) -> Callable[[np.ndarray], np.ndarray]:
    """Points as the leaves' dtypes hold them."""
    dtypes = [dtype_name(leaf) if hasattr(leaf, "dtype") else "float64" for leaf in leaves]
    if all(dtype == "float64" for dtype in dtypes):
        return lambda points: points
    ends = np.cumsum([math.prod(shape_of(leaf)) for leaf in leaves])[:-1]

    def rounded(points: np.ndarray) -> np.ndarray:
        parts = zip(np.split(points, ends, axis=-1), dtypes, strict=True)
        return np.concatenate([part.astype(jnp.dtype(d)).astype(float) for part, d in parts], -1)

    return rounded
