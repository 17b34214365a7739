"""The equations of a graph on given values, laid out one after the other.

An elementary operation is a step. One with a graph inside is laid out by a function of its own,
which `lays_out` enters into the table: `functions` and `loops`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jaxbackprop.graph.custom import no_tangent
from jaxbackprop.graph.inspection.steps import HasNoTemplate, Log, Place, Step, Unknown, Value
from jaxbackprop.graph.lines import where
from jaxbackprop.graph.rules import FLAT, UnsupportedPrimitive
from jaxbackprop.graph.walk import Node, context, evaluate, is_real, record

LayOut = Callable[[Log, Any, list[Value], Place], list[Value]]
LAID_OUT: dict[str, LayOut] = {}


def lays_out(*primitives: str) -> Callable[[LayOut], LayOut]:
    """Enter how these operations are laid out, which have a graph inside."""

    def enter_it(lay_out: LayOut) -> LayOut:
        LAID_OUT.update(dict.fromkeys(primitives, lay_out))
        return lay_out

    return enter_it


def run(log: Log, jaxpr: Any, consts: list, args: list, place: Place) -> list[Value]:
    """Lay out the equations of one jaxpr, and return the values of its outputs."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> Value:
        return Value(jnp.asarray(v.val)) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        lay_out = LAID_OUT.get(equation.primitive.name, elementary)
        with context(equation):
            outputs = lay_out(log, equation, inputs, place.at(equation))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def inside(log: Log, closed: Any, args: list[Value], at: Place) -> list[Value]:
    consts = [Value(c) for c in getattr(closed, "consts", ())]
    return run(log, getattr(closed, "jaxpr", closed), consts, args, at)


def elementary(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """Evaluate one operation; tape it where a gradient can pass through it."""
    arrays, flags = [v.array for v in inputs], [v.active for v in inputs]
    if not any(flags) or equation.primitive.name in FLAT:
        values = [Value(array) for array in _apart(log, evaluate(equation, arrays))]
        log.steps.append(Step(at, inputs, values, inputs))
        return values
    try:
        outputs, pull = record(equation, arrays, flags, at.equations[:-1])
    except UnsupportedPrimitive as error:
        return _opaque(log, inputs, at, error)
    tangent = any(v.tangent for v in inputs)
    outputs = [Value(o, is_real(o), tangent) for o in _apart(log, outputs)]
    return enter(log, at, inputs, outputs, pull)


def _apart(log: Log, outputs: list) -> list:
    """As the operation by itself computes them: compiled, it would be rewritten with others, and
    what is Inf in the one form may not be in the other."""
    outputs = [jnp.asarray(x) if isinstance(x, bool) else x for x in outputs]
    return list(lax.optimization_barrier(outputs)) if log.without_values else outputs


def _opaque(log: Log, inputs: list[Value], at: Place, error: UnsupportedPrimitive) -> list[Value]:
    """An operation that has values, and no rule for its gradient.

    It may write to a mutable array, which then counts among its outputs: what is read from it
    later depends on the inputs.
    """

    if log.without_values:
        raise HasNoTemplate

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
    enter(log, at, inputs, [*outputs, *written], pull)
    return outputs


def enter(
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
    step.back = _or_unknown(pull, at, active)
    log.nodes.append(Node(step, *arrays, active, step.back))
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
