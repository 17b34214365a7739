"""Functions that are called, chosen by a cond, or that have a rule of their own, laid out."""

from typing import Any

from jaxbackprop.graph.custom import jvp_graph, no_tangent
from jaxbackprop.graph.inspection.laying import elementary, enter, inside, lays_out, run
from jaxbackprop.graph.inspection.steps import Log, Place, Value

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "remat2": "jaxpr", "remat": "jaxpr"}


@lays_out(*CALLS)
def call(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    return inside(log, equation.params[CALLS[equation.primitive.name]], inputs, at)


@lays_out("cond")
def cond(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The branch that is taken."""
    return inside(log, equation.params["branches"][int(inputs[0].array)], inputs[1:], at)


@lays_out("custom_vjp_call")
def custom_vjp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """Its gradient is a function of its own: what is inside has values, and no gradients."""
    body = equation.params["call_jaxpr"]
    if _without_its_rule(inputs):
        return inside(log, body, inputs, at)
    own = []
    if not equation.effects:  # which would happen twice
        own = inside(log, body, [Value(v.array, source=v) for v in inputs], at)
    outputs = elementary(log, equation, inputs, at)
    log.steps[-1].inside = own
    return outputs


def _without_its_rule(inputs: list[Value]) -> bool:
    """A rule is for what is differentiated; where a rule calls its own function on tangents, it
    says that the function is linear, and is the function's body there."""
    return not any(v.active for v in inputs) or any(v.tangent for v in inputs)


@lays_out("custom_jvp_call")
def custom_jvp(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """A function with a forward rule of its own, laid out as that rule: (x, t) ↦ (f(x), J t).

    Its gradient is the walk from J t back to t. Two steps of the identity join x to t, and J t to
    f(x). The function's own body is never walked: relu's rule differs from it at 0.
    """
    if _without_its_rule(inputs):
        return inside(log, equation.params["call_jaxpr"], inputs, at)
    count = equation.params["num_consts"]
    if any(v.active for v in inputs[:count]):  # of which the rule says nothing
        return elementary(log, equation, inputs, at)
    primals = inputs[count:]
    jaxpr, consts, zero, out_zero = jvp_graph(equation, [v.active for v in primals])
    moving = [v for v, z in zip(primals, zero, strict=True) if not z]
    tangents = [Value(no_tangent(v.array), v.active, True) for v in moving]
    active = [v for v in primals if v.active]
    starts = [t for t in tangents if t.active]
    enter(log, at._replace(hidden=True), active, starts, lambda cts: cts)
    values = [Value(c) for c in consts], [*(Value(v.array, source=v) for v in primals), *tangents]
    outputs = run(log, jaxpr, *values, at)
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

    return enter(log, at, [*values, *linear], found, pull, primals) if linear else found
