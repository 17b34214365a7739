"""A function that jax can trace: its graph, evaluated along lines in float64."""

import itertools
import re
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxbackprop.check.arguments import Moving, bits, copied
from jaxbackprop.check.contents import graphs_in, made_of
from jaxbackprop.check.deciding import Decisions
from jaxbackprop.check.precision import wide
from jaxbackprop.check.widened import CALLBACKS, evaluate_wide
from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.mutable import make_jaxpr

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


class Traced:
    """A graph as a function of the moving leaves, the shapes that it returns, and its programs.

    A program is given the graph's constants: one that differs in them alone needs no other.
    """

    def __init__(self, graph: ClosedJaxpr, shape: Any) -> None:
        self.graph, self.shape = graph, shape
        self.settled = False  # the same graph each time, as far as was seen
        self.programs: dict[Any, Callable] = {}

    @cached_property
    def text(self) -> str:
        return ADDRESS.sub("", str(self.graph))

    @cached_property
    def numbers(self) -> list:
        """Inside the graph."""
        return [*_inside(open_jaxpr(self.graph)[0])]

    def program(self, key: Any, make: Callable[[ClosedJaxpr], Callable]) -> Callable:
        """make(graph), compiled once."""
        if key not in self.programs:
            jaxpr = self.graph.jaxpr

            def made(consts: Sequence, *args: Any) -> Any:
                return make(ClosedJaxpr(jaxpr, consts))(*args)

            self.programs[key] = jax.jit(made, compiler_options=QUICK)
        consts = [jnp.asarray(c) for c in self.graph.consts]
        return partial(self.programs[key], consts)

    def __call__(self, leaves: Sequence) -> Any:
        """What the graph has at these leaves, in its own precision."""
        found = self.program("own", jaxpr_as_fun)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(self.shape), found)


# Of functions that were checked before, for as long as they live.
_KNOWN: weakref.WeakKeyDictionary[Callable, dict[Any, Traced]] = weakref.WeakKeyDictionary()


def traced(f: Callable, moving: Moving) -> Traced | None:
    """None where jax cannot trace f: NumPy's functions, float(), an `if`."""
    if any(hasattr(leaf, "detach") for leaf in moving.leaves):
        return None
    try:
        found = Traced(*_trace(f, moving))
    except Exception:  # f is given arrays, and raises again there if it was no tracer's fault
        return None
    return _known(found, f, "itself", moving.leaves)


def _known(found: Traced, f: Callable, what: Any, leaves: Sequence) -> Traced:
    """With the programs of an earlier call, where f has the same graph again."""
    try:
        of_f = _KNOWN.setdefault(f, {})
    except TypeError:  # nothing that can be remembered
        return found
    key = what, tuple(jax.typeof(leaf) for leaf in leaves)
    earlier = of_f.get(key)
    if earlier and not made_of(found.graph) & CALLBACKS and _alike(earlier, found):
        found.programs = earlier.programs
        found.settled = earlier.settled and _equal(earlier.graph.consts, found.graph.consts)
    of_f[key] = found
    return found


def _trace(f: Callable, moving: Moving) -> tuple[ClosedJaxpr, Any]:
    def of(*leaves: Any) -> Any:
        return f(*moving.rebuild(leaves))

    return make_jaxpr(of, return_shape=True)(*moving.leaves)


def is_settled(found: Traced, f: Callable, moving: Moving) -> bool:
    """Is f's graph the same each time, its constants too? NumPy draws while f is traced."""
    begin = time.perf_counter()
    for _ in range(0 if found.settled else AGAIN - 1):
        if not _same(found, Traced(*_trace(f, moving))):
            return False
        if time.perf_counter() - begin > SECONDS:
            break
    found.settled = True
    return True


def _same(one: Traced, other: Traced) -> bool:
    return _alike(one, other) and _equal(one.graph.consts, other.graph.consts)


def _alike(one: Traced, other: Traced) -> bool:
    """The same but for the constants."""
    return one.text == other.text and _equal(one.numbers, other.numbers)


def _numbers(inner: Any) -> Iterator[Any]:
    """The constants of a graph, at every depth."""
    jaxpr, consts = open_jaxpr(inner)
    yield from consts
    yield from _inside(jaxpr)


def _inside(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, Literal))
        yield from itertools.chain.from_iterable(map(_numbers, graphs_in(equation)))


def _equal(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        a is b or bits(a) == bits(b) for a, b in zip(ours, theirs, strict=True)
    )


def own_value(found: Traced, moving: Moving) -> float:
    """f at the arguments, in its own precision."""
    return float(np.asarray(found(moving.leaves)).astype(np.float64))


def transformed(transform: Callable, f: Callable, moving: Moving) -> Any:
    """transform(f)'s leaves, compiled where that can be: a rule may ask for values."""
    of = transform(lambda leaves: f(*moving.rebuild(leaves)))
    try:
        graph, shape = jax.make_jaxpr(lambda *leaves: of(list(leaves)), return_shape=True)(
            *moving.leaves
        )
        return _known(Traced(graph, shape), f, transform, moving.leaves)(moving.leaves)
    except UNTRACEABLE:
        return of(list(map(copied, moving.leaves)))


def along_lines(
    found: Traced, moving: Moving, decided: Decisions, shaken: int | None = None
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(x, u, t) ↦ f(x + t u) for each line u (c, n) and its steps t (c, s), and t as x lets it be;
    `shaken`: its results rounded otherwise, in this of DRAWS ways.

    Everything but the directions stays on the device: a point of a million numbers is made there.
    """
    leaves = [jnp.asarray(leaf) for leaf in moving.leaves]
    lines = 1 if moving.size >= LARGE else LINES_AT_ONCE
    is_shaken = shaken is not None
    compiled = found.program((decided, is_shaken), partial(_lines, decided, is_shaken))

    def along(x: np.ndarray, u: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.pad(t, ((0, 0), (0, -t.shape[1] % STEPS_AT_ONCE)), mode="edge")
        rows = steps.reshape(-1, STEPS_AT_ONCE)
        which = np.repeat(np.arange(len(u)), len(rows) // len(u))
        parts = []
        with jax.enable_x64(True):
            start = jnp.asarray(x)
            for k in range(0, len(rows), lines):
                ks = np.minimum(np.arange(k, k + lines), len(rows) - 1)
                parts.append(compiled(leaves, shaken, start, u[which[ks]], rows[ks]))
        f, taken = (
            np.concatenate([np.asarray(part[k], np.float64) for part in parts])[: len(rows)]
            for k in (0, 1)
        )
        f, taken = (v.reshape(steps.shape)[:, : t.shape[1]] for v in (f, taken))
        return f, taken

    return along


def _lines(decided: Decisions, shaken: bool, graph: ClosedJaxpr) -> Callable:
    """f at x + t u, and t as the numbers allow it, for several lines with several steps each."""

    def several(leaves: Sequence, draw: Any, x: Any, u: Any, t: Any) -> Any:
        def at(u: Any, t: Any) -> Any:
            point = x + t * u
            way = draw if shaken else None
            value = evaluate_wide(graph, _parts(point, leaves), leaves, decided, way)[0]
            return wide(value), jnp.sum((point - x) * u)

        return lax.map(lambda line: lax.map(partial(at, line[0]), line[1]), (u, t))

    return several


def _parts(row: Any, leaves: Sequence) -> list:
    parts, start = [], 0
    for leaf in leaves:
        parts.append(row[start : start + leaf.size].reshape(leaf.shape))
        start += leaf.size
    return parts
