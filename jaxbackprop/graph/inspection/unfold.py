"""The graph of a function on given values, unfolded into one straight line of operations.

The walk treats a scan or a jitted function as one operation with a graph inside. On concrete values
those graphs can be laid out: calls are inlined, a cond is the branch that it took, a scan is its
steps one after the other. What is left is the list of elementary operations of the text, in
topological order, and the walk (`jaxbackprop.graph.walk.backward`) runs over it unchanged.

A `while` is its steps too, since the values say how many there are. An operation without a rule is
*opaque*: it has values, and the gradients behind it are unknown.
"""

from collections.abc import Sequence
from typing import Any

# These enter what they lay out.
from jaxbackprop.graph.inspection import functions, loops  # noqa: F401
from jaxbackprop.graph.inspection.laying import run
from jaxbackprop.graph.inspection.steps import AT_THE_TOP, Ends, Log, Place, Step, Value
from jaxbackprop.graph.walk import Tape, is_real


def unfold(
    jaxpr: Any, consts: Sequence, args: Sequence, place: Place = AT_THE_TOP
) -> tuple[list[Step], Tape]:
    """Evaluate the jaxpr at args, all of which are differentiated where they are real.

    `place`: the equations around it, where it is a part of another graph.
    """
    log = Log([], [])
    inputs = [Value(arg, is_real(arg)) for arg in args]
    outputs = run(log, jaxpr, [Value(c) for c in consts], inputs, place)
    arrays, active = [v.array for v in outputs], [v.active for v in outputs]
    return log.steps, Tape(Ends(inputs, outputs), log.nodes, arrays, active)
