"""The graph of a function on given values, unfolded into one straight line of operations.

The walk treats a scan or a jitted function as one operation with a graph inside. On concrete values
those graphs can be laid out: calls are inlined, a cond is the branch that it took, a scan is its
steps one after the other. What is left is the list of elementary operations of the text, in
topological order, and the walk (:func:`jaxbackprop.graph.walk.backward`) runs over it unchanged.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph.loop import dependence, lengths, parts
from jaxbackprop.graph.rules import FLAT
from jaxbackprop.graph.walk import Node, Tape, evaluate, is_real, record

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "remat2": "jaxpr", "remat": "jaxpr"}


@dataclasses.dataclass(eq=False)
class Value:
    """An array that the function computed. `active`: it depends on a differentiated input.

    A `tangent` is a variable of a rule that is linear in it: it has a gradient, but no value.
    `source` is the value that this one is a copy of, without its gradient.
    """

    array: Any
    active: bool = False
    tangent: bool = False
    source: "Value | None" = None


class Place(NamedTuple):
    """Where an operation stands: in which equations, from the outside in, and which scan steps."""

    equations: tuple = ()
    steps: tuple[int, ...] = ()
    hidden: bool = False  # the slicing and stacking that a scan does is not the user's

    def at(self, equation: Any) -> "Place":
        return self._replace(equations=(*self.equations, equation))


@dataclasses.dataclass(eq=False)
class Step:
    """One operation: `invars` and `outvars` are the walk's names for its values.

    The walk leaves the cotangents of its outputs and its contributions to those of its inputs.
    `operands` are what a reader would call its inputs.
    """

    place: Place
    invars: list[Value]
    outvars: list[Value]
    operands: list[Value]
    cts: Sequence = ()
    contributions: Sequence = ()

    @property
    def equation(self) -> Any:
        return self.place.equations[-1]


class Log(NamedTuple):
    """All steps in order, and the nodes of those that the walk goes back through."""

    steps: list[Step]
    nodes: list[Node]


@contextlib.contextmanager
def without_alarms() -> Iterator[None]:
    """NaN is what is looked for: jax's own alarms would stop at the first one, without a line."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


class Ends(NamedTuple):
    """What the walk asks of a jaxpr."""

    invars: list[Value]
    outvars: list[Value]


class Graph(NamedTuple):
    """A function's graph after the walk: what it was given, what it did, and the gradients.

    `constants` has the names of arrays that were given and not differentiated, by id.
    """

    steps: list[Step]
    tape: Tape
    names: tuple[str, ...]
    gradients: tuple
    constants: dict[int, str]


def unfold(jaxpr: Any, consts: Sequence, args: Sequence) -> tuple[list[Step], Tape]:
    """Evaluate the jaxpr at args, all of which are differentiated where they are real."""
    log = Log([], [])
    inputs = [Value(arg, is_real(arg)) for arg in args]
    outputs = _run(log, jaxpr, [Value(c) for c in consts], inputs, Place())
    arrays, active = [v.array for v in outputs], [v.active for v in outputs]
    return log.steps, Tape(Ends(inputs, outputs), log.nodes, arrays, active)


def _run(log: Log, jaxpr: Any, consts: list, args: list, place: Place) -> list[Value]:
    """Lay out the equations of one jaxpr, and return the values of its outputs."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v):
        return Value(v.val) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        lay_out = STRUCTURE.get(equation.primitive.name, _elementary)
        outputs = lay_out(log, equation, inputs, place.at(equation))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _inside(log: Log, closed: Any, args: list[Value], at: Place) -> list[Value]:
    consts = [Value(c) for c in getattr(closed, "consts", ())]
    return _run(log, getattr(closed, "jaxpr", closed), consts, args, at)


def _elementary(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """Evaluate one operation; tape it where a gradient can pass through it."""
    arrays, flags = [v.array for v in inputs], [v.active for v in inputs]
    if not any(flags) or equation.primitive.name in FLAT:
        values = [Value(array) for array in evaluate(equation, arrays)]
        log.steps.append(Step(at, inputs, values, inputs))
        return values
    outputs, pull = record(equation, arrays, flags, at.equations[:-1])
    tangent = any(v.tangent for v in inputs)
    return _enter(log, at, inputs, [Value(o, is_real(o), tangent) for o in outputs], pull)


def _enter(
    log: Log,
    at: Place,
    inputs: list[Value],
    outputs: list[Value],
    pull: Callable,
    operands: list[Value] | None = None,
) -> list[Value]:
    step = Step(at, inputs, outputs, operands or inputs)
    log.steps.append(step)
    if not any(v.active for v in outputs):
        return outputs
    arrays = [v.array for v in inputs], [v.array for v in outputs]
    log.nodes.append(Node(step, *arrays, [v.active for v in inputs], pull))
    return outputs


def _call(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    return _inside(log, equation.params[CALLS[equation.primitive.name]], inputs, at)


def _cond(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The branch that is taken."""
    return _inside(log, equation.params["branches"][int(inputs[0].array)], inputs[1:], at)


def _custom_vjp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """Its gradient is a function of its own: what is inside has values, and no gradients."""
    if not any(v.active for v in inputs):
        return _inside(log, equation.params["call_jaxpr"], inputs, at)
    _inside(log, equation.params["call_jaxpr"], [Value(v.array, source=v) for v in inputs], at)
    return _elementary(log, equation, inputs, at)


def _custom_jvp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """A function with a forward rule of its own, laid out as that rule: (x, t) ↦ (f(x), J t).

    Its gradient is the walk from J t back to t. Two steps of the identity join x to t, and J t to
    f(x). The function's own body is never walked: relu's rule differs from it at 0.
    """
    if not any(v.active for v in inputs):
        return _inside(log, equation.params["call_jaxpr"], inputs, at)
    primals = inputs[equation.params["num_consts"] :]
    active = [v for v in primals if v.active]
    rule = equation.params["jvp_jaxpr_fun"]
    jaxpr, consts, zero = rule.call_wrapped(*(not v.active for v in primals))
    tangents = [Value(jnp.zeros_like(v.array), True, True) for v in active]
    _enter(log, at._replace(hidden=True), active, tangents, lambda cts: cts)
    values = [Value(c) for c in consts], [*(Value(v.array, source=v) for v in primals), *tangents]
    outputs = _run(log, jaxpr, *values, at)
    values, tangents = outputs[: len(zero)], outputs[len(zero) :]
    found = [Value(v.array, not z) for v, z in zip(values, zero, strict=True)]
    joined = [v for v in found if v.active]

    def pull(cts):
        return [*(None for _ in values), *(ct for ct, z in zip(cts, zero, strict=True) if not z)]

    return _enter(log, at, [*values, *tangents], found, pull, primals) if joined else found


def _scan(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The steps of a scan, one after the other."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    n_consts, n_carry = lengths(equation.params)
    consts, carry, xs = parts(inputs, n_consts, n_carry)
    # What depends on the inputs in any step has a gradient in all of them.
    active = [v.active for v in inputs]
    flags, _ = dependence(getattr(body, "jaxpr", body), active, n_consts, n_carry)
    carry = [
        v if v.active else Value(v.array, flag, source=v)
        for v, flag in zip(carry, flags[n_consts:], strict=False)
    ]

    slices = [_slices(log, x, length, at._replace(hidden=True)) for x in xs]
    rows = [[] for _ in range(length)]
    for i in reversed(range(length)) if equation.params["reverse"] else range(length):
        here = at._replace(steps=(*at.steps, i))
        outputs = _inside(log, body, [*consts, *carry, *(x[i] for x in slices)], here)
        carry, rows[i] = outputs[:n_carry], outputs[n_carry:]
    if not rows:
        kinds = [v.aval for v in equation.outvars[n_carry:]]
        return [*carry, *(Value(jnp.zeros(kind.shape, kind.dtype)) for kind in kinds)]
    stacks = [_stack(log, ys, at._replace(hidden=True)) for ys in zip(*rows, strict=True)]
    return [*carry, *stacks]


def _slices(log: Log, x: Value, length: int, at: Place) -> list[Value]:
    """x ↦ x₀, x₁, … In NumPy: jax would compile each slice by itself."""
    if not is_real(x.array):
        return [Value(x.array[i]) for i in range(length)]

    def pull(cts):
        zero = np.zeros(x.array.shape[1:], x.array.dtype)
        return [jnp.asarray(np.stack([zero if ct is None else np.asarray(ct) for ct in cts]))]

    rows = [Value(jnp.asarray(row), x.active) for row in np.asarray(x.array)]
    return _enter(log, at, [x], rows, pull) if length else []


def _stack(log: Log, ys: Sequence[Value], at: Place) -> Value:
    """y₀, y₁, … ↦ y."""
    if not is_real(ys[0].array):
        return Value(jnp.stack([y.array for y in ys]))

    def pull(cts):
        rows = np.asarray(cts[0])
        return [jnp.asarray(row) if y.active else None for y, row in zip(ys, rows, strict=True)]

    stacked = jnp.asarray(np.stack([np.asarray(y.array) for y in ys]))
    return _enter(log, at, list(ys), [Value(stacked, any(y.active for y in ys))], pull)[0]


STRUCTURE: dict[str, Callable[[Log, Any, list[Value], Place], list[Value]]] = {
    **dict.fromkeys(CALLS, _call),
    "cond": _cond,
    "scan": _scan,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
}
