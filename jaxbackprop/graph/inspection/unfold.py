"""The graph of a function on given values, unfolded into one straight line of operations.

The walk treats a scan or a jitted function as one operation with a graph inside. On concrete values
those graphs can be laid out: calls are inlined, a cond is the branch that it took, a scan is its
steps one after the other. What is left is the list of elementary operations of the text, in
topological order, and the walk (:func:`jaxbackprop.graph.walk.backward`) runs over it unchanged.

A `while` is its steps too, since the values say how many there are. An operation without a rule is
*opaque*: it has values, and the gradients behind it are unknown.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph.custom import jvp_graph, no_tangent
from jaxbackprop.graph.lines import where
from jaxbackprop.graph.loop import dependence, lengths, parts
from jaxbackprop.graph.rules import FLAT, UnsupportedPrimitive
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


def origin_of(v: Value) -> Value:
    """The value that this one is a copy of."""
    return v if v.source is None else origin_of(v.source)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """In place of a gradient that comes through an operation without a rule. Absorbs any sum."""

    operation: str
    line: str
    reason: str
    # To the walk's sums it is an array, of which nothing is known; NumPy leaves it alone.
    dtype = np.dtype(np.float32)
    __array_ufunc__ = None

    def astype(self, dtype: Any) -> "Unknown":
        return self

    def __add__(self, other: Any) -> "Unknown":
        return self

    __radd__ = __add__

    def __repr__(self) -> str:
        return f"unknown behind {self.operation} at {self.line}: {self.reason}"


class Place(NamedTuple):
    """Where an operation stands: in which equations, from the outside in, and which scan steps."""

    equations: tuple = ()
    steps: tuple[int, ...] = ()
    hidden: bool = False  # the slicing and stacking that a scan does is not the user's

    def at(self, equation: Any) -> "Place":
        return self._replace(equations=(*self.equations, equation))


AT_THE_TOP = Place()


@dataclasses.dataclass(eq=False)
class Step:
    """One operation: `invars` and `outvars` are the walk's names for its values.

    The walk leaves the cotangents of its outputs and its contributions to those of its inputs.
    `operands` are what a reader would call its inputs. `inside` are the outputs once more, as the
    steps of its own body made them, where it has a rule besides.
    """

    place: Place
    invars: list[Value]
    outvars: list[Value]
    operands: list[Value]
    cts: Sequence = ()
    contributions: Sequence = ()
    inside: Sequence[Value] = ()

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


def unfold(
    jaxpr: Any, consts: Sequence, args: Sequence, place: Place = AT_THE_TOP
) -> tuple[list[Step], Tape]:
    """Evaluate the jaxpr at args, all of which are differentiated where they are real.

    `place`: the equations around it, where it is a part of another graph.
    """
    log = Log([], [])
    inputs = [Value(arg, is_real(arg)) for arg in args]
    outputs = _run(log, jaxpr, [Value(c) for c in consts], inputs, place)
    arrays, active = [v.array for v in outputs], [v.active for v in outputs]
    return log.steps, Tape(Ends(inputs, outputs), log.nodes, arrays, active)


def _run(log: Log, jaxpr: Any, consts: list, args: list, place: Place) -> list[Value]:
    """Lay out the equations of one jaxpr, and return the values of its outputs."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> Value:
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
    try:
        outputs, pull = record(equation, arrays, flags, at.equations[:-1])
    except UnsupportedPrimitive as error:
        return _opaque(log, inputs, at, error)
    tangent = any(v.tangent for v in inputs)
    return _enter(log, at, inputs, [Value(o, is_real(o), tangent) for o in outputs], pull)


def _opaque(log: Log, inputs: list[Value], at: Place, error: UnsupportedPrimitive) -> list[Value]:
    """An operation that has values, and no rule for its gradient.

    It may write to a mutable array, which then counts among its outputs: what is read from it
    later depends on the inputs.
    """

    def pull(cts):
        raise error

    equation, tangent = at.equations[-1], any(v.tangent for v in inputs)
    # What is linear in tangents, which are zero, is zero; jax may have no value of it.
    arrays = (
        [no_tangent(jnp.empty(v.aval.shape, v.aval.dtype)) for v in equation.outvars]
        if tangent
        else evaluate(equation, [v.array for v in inputs])
    )
    outputs = [Value(o, is_real(o), tangent) for o in arrays]
    written = [v for v in inputs if isinstance(v.array, jax.Ref)]
    for v in written:
        v.active = True
    _enter(log, at, inputs, [*outputs, *written], pull)
    return outputs


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
    active = [v.active for v in inputs]
    log.nodes.append(Node(step, *arrays, active, _or_unknown(pull, at, active)))
    return outputs


def _or_unknown(pull: Callable, at: Place, active: list[bool]) -> Callable:
    """As `pull`, where the gradients that arrive are known and the operation has a rule."""

    def guarded(cts):
        unknown = next((ct for ct in cts if isinstance(ct, Unknown)), None)
        if unknown is None:
            try:
                return pull(cts)
            except UnsupportedPrimitive as error:
                name, line = at.equations[-1].primitive.name, where(at.equations)
                unknown = Unknown(name, line, str(error.args[0]))
        return [unknown if a else None for a in active]

    return guarded


def _call(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    return _inside(log, equation.params[CALLS[equation.primitive.name]], inputs, at)


def _cond(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The branch that is taken."""
    return _inside(log, equation.params["branches"][int(inputs[0].array)], inputs[1:], at)


def _custom_vjp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """Its gradient is a function of its own: what is inside has values, and no gradients."""
    body = equation.params["call_jaxpr"]
    if _without_its_rule(inputs):
        return _inside(log, body, inputs, at)
    inside = []
    if not equation.effects:  # which would happen twice
        inside = _inside(log, body, [Value(v.array, source=v) for v in inputs], at)
    outputs = _elementary(log, equation, inputs, at)
    log.steps[-1].inside = inside
    return outputs


def _without_its_rule(inputs: list[Value]) -> bool:
    """A rule is for what is differentiated; where a rule calls its own function on tangents, it
    says that the function is linear, and is the function's body there."""
    return not any(v.active for v in inputs) or any(v.tangent for v in inputs)


def _custom_jvp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """A function with a forward rule of its own, laid out as that rule: (x, t) ↦ (f(x), J t).

    Its gradient is the walk from J t back to t. Two steps of the identity join x to t, and J t to
    f(x). The function's own body is never walked: relu's rule differs from it at 0.
    """
    if _without_its_rule(inputs):
        return _inside(log, equation.params["call_jaxpr"], inputs, at)
    count = equation.params["num_consts"]
    if any(v.active for v in inputs[:count]):  # of which the rule says nothing
        return _elementary(log, equation, inputs, at)
    primals = inputs[count:]
    jaxpr, consts, zero, out_zero = jvp_graph(equation, [v.active for v in primals])
    moving = [v for v, z in zip(primals, zero, strict=True) if not z]
    tangents = [Value(no_tangent(v.array), v.active, True) for v in moving]
    active = [v for v in primals if v.active]
    starts = [t for t in tangents if t.active]
    _enter(log, at._replace(hidden=True), active, starts, lambda cts: cts)
    values = [Value(c) for c in consts], [*(Value(v.array, source=v) for v in primals), *tangents]
    outputs = _run(log, jaxpr, *values, at)
    values, ends = outputs[: len(out_zero)], iter(outputs[len(out_zero) :])
    slopes = [None if z else next(ends) for z in out_zero]
    found = [
        Value(v.array, s is not None and s.active) for v, s in zip(values, slopes, strict=True)
    ]
    joined = [s if v.active else None for v, s in zip(found, slopes, strict=True)]
    linear = [s for s in joined if s is not None]

    def pull(cts):
        sent = [ct for ct, s in zip(cts, joined, strict=True) if s is not None]
        return [*(None for _ in values), *sent]

    return _enter(log, at, [*values, *linear], found, pull, primals) if linear else found


def _scan(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The steps of a scan, one after the other."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    n_consts, n_carry = lengths(equation.params)
    consts, carry, xs = parts(inputs, n_consts, n_carry)
    carry = _carried(body, consts, carry, xs)
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


def _while(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The steps of a loop until its condition fails: the values say how many there are."""
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    n_condition, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_condition, consts, carry = parts(inputs, n_condition, n_body)
    carry = _carried(body, consts, carry, [])
    i = 0
    while True:
        here = at._replace(steps=(*at.steps, i))
        (goes_on,) = _inside(log, condition, [*of_condition, *carry], here)
        if not np.any(goes_on.array):
            return carry
        after = _inside(log, body, [*consts, *carry], here)
        if np.ndim(goes_on.array):  # under vmap, where each example has its own number of steps
            select = jax.make_jaxpr(_select)(
                *([v.array for v in vs] for vs in (carry, after)), goes_on.array
            )
            after = _inside(log, select, [*carry, *after, goes_on], here._replace(hidden=True))
        carry, i = after, i + 1


def _select(before: list, after: list, goes_on: Any) -> list:
    """Of each example that goes on, what is new; of the others, what was."""

    def chosen(old: Any, new: Any) -> Any:
        return jnp.where(
            goes_on.reshape(goes_on.shape + (1,) * (old.ndim - goes_on.ndim)), new, old
        )

    return [chosen(old, new) for old, new in zip(before, after, strict=True)]


def _carried(body: Any, consts: list[Value], carry: list[Value], xs: list[Value]) -> list[Value]:
    """What depends on the inputs in any step of a loop has a gradient in all of them."""
    active = [v.active for v in (*consts, *carry, *xs)]
    flags, _ = dependence(getattr(body, "jaxpr", body), active, len(consts), len(carry))
    return [
        v if v.active else Value(v.array, flag, source=v)
        for v, flag in zip(carry, flags[len(consts) :], strict=False)
    ]


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
    "while": _while,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
}
