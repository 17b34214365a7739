"""A backward rule of one's own, looked into: what it does with the gradients that arrive."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbackprop.graph.custom import custom_vjp
from jaxbackprop.graph.inspection.laying import run
from jaxbackprop.graph.inspection.steps import Ends, Graph, Log, Step, Value
from jaxbackprop.graph.walk import Tape


def inside_the_rule(step: Step, operand: int) -> Graph | None:
    """What the rule computes for the operand's gradient, of finite gradients from above.

    None where the operation has no such rule. The rule is asked once more, outside of the walk, in
    which all that it does would have the line of the call.
    """
    if step.equation.primitive.name != "custom_vjp_call":
        return None
    inputs = [v.array for v in step.invars]
    _, pull = custom_vjp(step.equation, inputs, [v.active for v in step.invars])
    arrived = [ct is not None for ct in step.cts]
    finite = [jnp.where(jnp.isfinite(ct), ct, 1) for ct in step.cts if ct is not None]

    def rule(*given: Any) -> Any:
        cts = iter(given)
        return pull([next(cts) if own else None for own in arrived])[operand]

    closed = jax.make_jaxpr(rule)(*finite)
    log, given = Log([], []), [Value(ct) for ct in finite]
    outputs = run(log, closed.jaxpr, [Value(c) for c in closed.consts], given, step.place)
    tape = Tape(Ends(given, outputs), [], [v.array for v in outputs], [False] * len(outputs))
    return Graph(log.steps, tape, tuple("" for _ in given), (None,) * len(given), {})
