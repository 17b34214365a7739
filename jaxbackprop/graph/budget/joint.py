"""The joint graph: a forward pass and its backward pass as one flat list of operations.

The walk is traced with the output's cotangents, the *seeds*, as arguments. Calls are flattened:
what a jitted function computes is kept or dropped value by value. A user's own `jax.checkpoint` is
walked like a call, because what is kept is decided here for the whole graph.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

from jaxbackprop.graph.dependence import CALLS, open_jaxpr
from jaxbackprop.graph.partition import acts
from jaxbackprop.graph.walk import backward, forward

CALL = Primitive("jit")  # never bound: the name under which the walk looks inside
CHECKPOINTS = frozenset({"checkpoint", "remat2", "remat"})


class _PlannedScan(Primitive):
    """What the walk meets in place of a scan that is planned; outside the walk it is the scan."""

    multiple_results = True

    def bind(self, *args: Any, scan: Primitive, **params: Any) -> Any:
        return scan.bind(*args, **params)


PLANNED = _PlannedScan("planned_scan")


class Operation(NamedTuple):
    """One equation of the flat graph: its operands and results by number.

    An operand that is a number of the program's text is a `Literal`. `around`: the equations of the
    calls that it was in, outermost first.
    """

    equation: Any
    reads: tuple[Any, ...]
    writes: tuple[int, ...]
    around: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def values(self) -> list[int]:
        return [v for v in self.reads if not isinstance(v, Literal)]

    @property
    def lines(self) -> tuple[Any, ...]:
        """The equations that say which line it comes from, outermost first."""
        return (*self.around, self.equation)


class Joint(NamedTuple):
    """A flat graph. `late`: what depends on the seeds; `known`: the inputs that are numbers of the
    program's text, which a compiler treats otherwise than its arguments."""

    avals: list[Any]
    operations: list[Operation]
    inputs: list[int]
    outputs: list[Any]
    late: set[int]
    known: Mapping[int, Any] = MappingProxyType({})


def prepared(jaxpr: Any) -> Any:
    """The graph with every `jax.checkpoint` in it as a plain call and every scan under the name of
    one that is planned, in calls and in scans as well. A scan that does something beside computing
    is left as it is: it is done once."""
    if isinstance(jaxpr, ClosedJaxpr) and not isinstance(jaxpr, Jaxpr):
        return jaxpr.replace(jaxpr=prepared(jaxpr.jaxpr))
    return cast(Any, jaxpr).replace(eqns=[_prepared(equation) for equation in jaxpr.eqns])


def _prepared(equation: Any) -> Any:
    name, params = equation.primitive.name, equation.params
    if name in CHECKPOINTS:
        inner = prepared(params["jaxpr"])
        return equation.replace(primitive=CALL, params={**params, "jaxpr": inner})
    if name in CALLS:
        inner = prepared(params[CALLS[name]])
        return equation.replace(params={**params, CALLS[name]: inner})
    if name == "scan" and params["length"] and not equation.effects:
        inner = {"jaxpr": prepared(params["jaxpr"]), "scan": equation.primitive}
        return equation.replace(primitive=PLANNED, params={**params, **inner})
    return equation


def trace(
    jaxpr: Any,
    consts: Sequence,
    leaves: Sequence,
    seeded: Sequence[bool],
    as_it_is: bool = False,
    active: Sequence[bool] | None = None,
) -> tuple:
    """(joint graph, its constants, which leaves have a gradient).

    The graph's inputs are its constants, the leaves and one seed for each output that is `seeded`;
    its outputs those of the function and the gradients that there are. `as_it_is`: checkpoints and
    scans are walked as without a budget. `active`: the leaves that want a gradient, if not all.
    """
    ready = jaxpr if as_it_is else prepared(jaxpr)
    found = []

    def there_and_back(consts, leaves, seeds):
        tape = forward(ready, consts, leaves, active or [True] * len(leaves))
        given = iter(seeds)
        cts = [next(given) if s else None for s in seeded]
        cts = [ct if a else None for ct, a in zip(cts, tape.active_outputs, strict=True)]
        gradients = backward(tape, cts)
        found[:] = [g is not None for g in gradients]
        return tape.outputs, [g for g in gradients if g is not None]

    seeds = [v.aval for v, s in zip(jaxpr.outvars, seeded, strict=True) if s]
    closed = jax.make_jaxpr(there_and_back)(
        *([like(x) for x in g] for g in (consts, leaves, seeds))
    )
    whole, whole_consts = open_jaxpr(closed)
    joint, values = flatten(whole, len(seeds)), [*whole_consts, *consts]
    known = {v: x for v, x in zip(joint.inputs, values, strict=False) if _is_known(x)}
    return joint._replace(known=known), values, found


def _is_known(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray)) and not isinstance(x, Tracer)


def like(x: Any) -> Any:
    """The type of an array, a number or a traced value; a type is its own."""
    given = isinstance(x, jax.ShapeDtypeStruct) or type(x).__name__ == "ShapedArray"
    return x if given else jax.typeof(x)


def flatten(jaxpr: Any, seeds: int) -> Joint:
    """The graph without its calls, and without what neither an output nor an effect needs."""
    avals, operations = [], []

    def new(variable):
        avals.append(variable.aval)
        return len(avals) - 1

    def read(names, variable):
        return variable if isinstance(variable, Literal) else names[variable]

    def walk(equations, names, around):
        for equation in equations:
            reads = tuple(read(names, v) for v in equation.invars)
            if equation.primitive.name in CALLS:
                inner, consts = open_jaxpr(equation.params[CALLS[equation.primitive.name]])
                within = dict(zip(inner.invars, reads, strict=True))
                within |= {
                    v: _literal(c, v.aval) for v, c in zip(inner.constvars, consts, strict=True)
                }
                walk(inner.eqns, within, (*around, equation))
                names |= {
                    outer: read(within, v)
                    for outer, v in zip(equation.outvars, inner.outvars, strict=True)
                }
            else:
                writes = tuple(new(v) for v in equation.outvars)
                names.update(zip(equation.outvars, writes, strict=True))
                operations.append(Operation(equation, reads, writes, around))

    names = {v: new(v) for v in (*jaxpr.constvars, *jaxpr.invars)}
    inputs = list(names.values())
    walk(jaxpr.eqns, names, ())
    outputs = [read(names, v) for v in jaxpr.outvars]
    operations, same = merged(operations)
    outputs = [same.get(v, v) if not isinstance(v, Literal) else v for v in outputs]
    operations = _needed(operations, outputs)
    late = set(inputs[len(inputs) - seeds :])
    for operation in operations:
        if any(v in late for v in operation.values):
            late.update(operation.writes)
    return Joint(avals, operations, inputs, outputs, late)


def _literal(value: Any, aval: Any) -> Literal:
    return Literal(value, aval)


def merged(operations: list[Operation]) -> tuple[list[Operation], dict[int, int]]:
    """The operations without those that repeat another one, as the compiler will have it; and which
    value stands for which."""
    found, same, kept = {}, {}, []
    for operation in operations:
        reads = tuple(v if isinstance(v, Literal) else same.get(v, v) for v in operation.reads)
        operation = operation._replace(reads=reads)
        if not acts(operation.equation):
            params = tuple(map(_same, operation.equation.params.values()))
            key = (operation.name, params, *map(_identity, reads))
            first = found.setdefault(key, operation)
            if first is not operation:
                same.update(zip(operation.writes, first.writes, strict=True))
                continue
        kept.append(operation)
    return kept, same


def _same(param: Any) -> Any:
    """What two equal parameters have in common. Two graphs that read alike may close over different
    arrays: only one and the same graph is equal."""
    try:
        hash(param)
    except TypeError:
        return id(param)
    return param


def _identity(operand: Any) -> Any:
    """What two equal operands have in common."""
    if not isinstance(operand, Literal):
        return operand
    value = np.asarray(operand.val)
    return (value.tobytes(), str(operand.aval)) if value.dtype != object else id(operand)


def _needed(operations: list[Operation], outputs: Sequence) -> list[Operation]:
    live = {v for v in outputs if not isinstance(v, Literal)}
    needed = []
    for operation in reversed(operations):
        if acts(operation.equation) or any(v in live for v in operation.writes):
            live.update(operation.values)
            needed.append(operation)
    return needed[::-1]
