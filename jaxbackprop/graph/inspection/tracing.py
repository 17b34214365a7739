"""The graph of a function on given values: traced, or recorded where Python looks at a value."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax

from jaxbackprop.graph.mutable import make_jaxpr
from jaxbackprop.graph.recording import run

LOOKS_AT_A_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


def traced(f: Callable, leaves: Sequence) -> tuple[Any, Any]:
    """(closed graph, shape of the result) of f(*leaves).

    Tracing shows every operation, and has no values. Where Python asks for one, as in `if x > 0`,
    the operations are those that f does on these leaves; what does not depend on them is constant.
    """
    try:
        return make_jaxpr(f, return_shape=True)(*leaves)
    except LOOKS_AT_A_VALUE:
        out, _, tape = run(lambda *leaves: (f(*leaves), ()), leaves)
    constants = {
        v: value
        for node in tape.nodes
        for v, value, active in zip(node.equation.invars, node.inputs, node.active, strict=True)
        if not active
    }
    known = {*tape.jaxpr.invars, *(v for node in tape.nodes for v in node.equation.outvars)}
    constants |= {
        v: x for v, x in zip(tape.jaxpr.outvars, tape.outputs, strict=True) if v not in known
    }
    graph = SimpleNamespace(
        constvars=list(constants),
        invars=tape.jaxpr.invars,
        outvars=tape.jaxpr.outvars,
        eqns=[node.equation for node in tape.nodes],
    )
    return SimpleNamespace(jaxpr=graph, consts=list(constants.values())), out
