"""A function that jax can trace: its graph, evaluated along lines in float64."""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxbackprop.check.arguments import Moving, copied
from jaxbackprop.check.contents import graphs_in
from jaxbackprop.check.widened import Decisions, evaluate_wide, wide
from jaxbackprop.graph.dependence import open_jaxpr

STEPS_AT_ONCE = 6
LINES_AT_ONCE, LARGE = 8, 100_000  # one line a call where it has so many numbers
# A small function takes longer to compile than to run.
QUICK: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones have no other emitters
    QUICK["xla_cpu_use_fusion_emitters"] = False
AGAIN, SECONDS = 8, 0.5  # f is traced again so often, or so long, to see that it does not change
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
ADDRESS = re.compile(r"0x[0-9a-f]+")


class Traced(NamedTuple):
    """f's graph as a function of the moving leaves, and the shapes that f returns."""

    graph: ClosedJaxpr
    shape: Any


def traced(f: Callable, moving: Moving) -> Traced | None:
    """None where jax cannot trace f: NumPy's functions, float(), an `if`."""
    if any(hasattr(leaf, "detach") for leaf in moving.leaves):
        return None
    try:
        return Traced(*_trace(f, moving))
    except Exception:  # f is given arrays, and raises again there if it was no tracer's fault
        return None


def _trace(f: Callable, moving: Moving) -> tuple[ClosedJaxpr, Any]:
    def of(*leaves: Any) -> Any:
        return f(*moving.rebuild(leaves))

    return jax.make_jaxpr(of, return_shape=True)(*moving.leaves)


def is_settled(found: Traced, f: Callable, moving: Moving) -> bool:
    """Is f's graph the same each time, its constants too? NumPy draws while f is traced."""
    begin, text, numbers = time.perf_counter(), _text(found.graph), [*_numbers(found.graph)]
    for _ in range(AGAIN - 1):
        again = _trace(f, moving)[0]
        if _text(again) != text or not _equal(numbers, [*_numbers(again)]):
            return False
        if time.perf_counter() - begin > SECONDS:
            break
    return True


def _text(graph: ClosedJaxpr) -> str:
    return ADDRESS.sub("", str(graph))


def _numbers(inner: Any) -> Iterator[Any]:
    """The constants in a graph, at every depth."""
    jaxpr, consts = open_jaxpr(inner)
    yield from consts
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, Literal))
        yield from itertools.chain.from_iterable(map(_numbers, graphs_in(equation)))


def _equal(ours: list, theirs: list) -> bool:
    def data(x: Any) -> np.ndarray:
        is_key = jnp.issubdtype(getattr(x, "dtype", np.int32), jax.dtypes.extended)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return len(ours) == len(theirs) and all(
        a is b or data(a).tobytes() == data(b).tobytes() for a, b in zip(ours, theirs, strict=True)
    )


def own_value(graph: ClosedJaxpr, moving: Moving) -> float:
    """f at the arguments, in its own precision."""
    (value,) = jax.jit(jaxpr_as_fun(graph), compiler_options=QUICK)(*moving.leaves)
    return float(np.asarray(value).astype(np.float64))


def transformed(transform: Callable, of: Callable, leaves: list) -> Any:
    """transform(of)(leaves), compiled where that can be: a rule may ask for values."""
    try:
        return jax.jit(transform(of), compiler_options=QUICK)(leaves)
    except UNTRACEABLE:
        return transform(of)(list(map(copied, leaves)))


def along_lines(
    graph: ClosedJaxpr, moving: Moving, decided: Decisions, shaken: bool = False
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(x, u, t) ↦ f(x + t u) for each line u (c, n) and its steps t (c, s), and t as x lets it be.

    Everything but the directions stays on the device: a point of a million numbers is made there.
    """
    leaves = [jnp.asarray(leaf) for leaf in moving.leaves]
    lines = 1 if moving.size >= LARGE else LINES_AT_ONCE

    def at(x: Any, u: Any, t: Any) -> Any:
        point = x + t * u
        value = evaluate_wide(graph, _parts(point, leaves), leaves, decided, shaken)[0]
        return wide(value), jnp.sum((point - x) * u)

    def some(x: Any, u: Any, t: Any) -> Any:
        return lax.map(lambda line: lax.map(lambda t: at(x, line[0], t), line[1]), (u, t))

    compiled = jax.jit(some, compiler_options=QUICK)

    def along(x: np.ndarray, u: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.pad(t, ((0, 0), (0, -t.shape[1] % STEPS_AT_ONCE)), mode="edge")
        rows = steps.reshape(-1, STEPS_AT_ONCE)
        which = np.repeat(np.arange(len(u)), len(rows) // len(u))
        found = []
        with jax.enable_x64(True):
            start = jnp.asarray(x)
            for k in range(0, len(rows), lines):
                ks = np.minimum(np.arange(k, k + lines), len(rows) - 1)
                found.append(compiled(start, u[which[ks]], rows[ks]))
        f, taken = (
            np.concatenate([np.asarray(part[k], np.float64) for part in found])[: len(rows)]
            for k in (0, 1)
        )
        f, taken = (v.reshape(steps.shape)[:, : t.shape[1]] for v in (f, taken))
        return f, taken

    return along


def _parts(row: Any, leaves: Sequence) -> list:
    parts, start = [], 0
    for leaf in leaves:
        parts.append(row[start : start + leaf.size].reshape(leaf.shape))
        start += leaf.size
    return parts
