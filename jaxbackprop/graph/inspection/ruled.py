"""A backward rule of one's own, or a shard_map's, looked into: what it makes of what arrives."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbackprop.graph.custom import custom_vjp
from jaxbackprop.graph.devices import shard_map
from jaxbackprop.graph.inspection.laying import run
from jaxbackprop.graph.inspection.steps import Ends, Graph, Log, Step, Value
from jaxbackprop.graph.walk import Tape

RECORDERS = {"custom_vjp_call": custom_vjp, "shard_map": shard_map}


def inside_the_rule(step: Step, operand: int) -> Graph | None:
    """What the rule computes for the operand's gradient, of finite gradients from above.

    None where the operation has no such rule. The rule is asked once more, outside of the walk, in
    which all that it does would have the line of the call.
    """
    rule_of = RECORDERS.get(step.equation.primitive.name)
    if rule_of is None:
        return None
    inputs, active = [v.array for v in step.invars], [v.active for v in step.invars]
    arrived = [ct is not None for ct in step.cts]
    finite = [jnp.where(jnp.isfinite(ct), ct, 1) for ct in step.cts if ct is not None]

    def rule(*given: Any) -> Any:
        cts = iter(given)
        _, pull = rule_of(step.equation, inputs, active)  # what it keeps, too, may be the cause
        return pull([next(cts) if own else None for own in arrived])[operand]

    closed = jax.make_jaxpr(rule)(*finite)
    log, given = Log([], []), [Value(ct) for ct in finite]
    outputs = run(log, closed.jaxpr, [Value(c) for c in closed.consts], given, step.place)
    tape = Tape(Ends(given, outputs), [], [v.array for v in outputs], [False] * len(outputs))
    return Graph(log.steps, tape, tuple("" for _ in given), (None,) * len(given), {})
