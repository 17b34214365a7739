"""Every operation of a graph on the values of one call, in order, scan steps one by one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxbackprop.check.contents import graphs_in
from jaxbackprop.check.widened import CALLS, SILENT
from jaxbackprop.graph.dependence import lengths, open_jaxpr, parts
from jaxbackprop.graph.loop import going_on
from jaxbackprop.graph.rules.table import FLAT
from jaxbackprop.graph.walk import evaluate, is_real

RULED = ("custom_jvp_call", "custom_vjp_call")


class Place(NamedTuple):
    """The equations around an operation, outermost first and its own last; the steps of scans."""

    equations: tuple = ()
    steps: tuple[int, ...] = ()


class Given(NamedTuple):
    """A value, and whether it depends on what is differentiated."""

    array: Any
    active: bool


Visit = Callable[[Any, list[Given], Place], None]
Takes = Callable[[Any], bool]  # which operations the visit sees


def has_rule(equation: Any) -> bool:
    return equation.primitive.name in RULED


def visit_graph(
    inner: Any, args: Sequence[Given], visit: Visit, takes: Takes, place: Place
) -> list[Given]:
    """The outputs of the graph at args; `visit(equation, inputs, place)` sees each operation that
    `takes` takes on the way. A function with a rule is seen, and looked into."""
    jaxpr, consts = open_jaxpr(inner)
    given = [*(Given(c, False) for c in consts), *args]
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))

    def read(v):
        return Given(v.val, False) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        here = Place((*place.equations, equation), place.steps)
        outputs = _one(equation, inputs, visit, takes, here)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _one(
    equation: Any, inputs: list[Given], visit: Visit, takes: Takes, here: Place
) -> list[Given]:
    name = equation.primitive.name
    if name in SILENT:
        return []
    if takes(equation):
        visit(equation, inputs, here)
    if _holds(equation, takes):
        if name in LOOPS:
            return LOOPS[name](equation, inputs, visit, takes, here)
        if name in (*CALLS, *RULED):
            return visit_graph(graphs_in(equation)[0], inputs, visit, takes, here)
    outputs = evaluate(equation, [given.array for given in inputs])
    active = any(given.active for given in inputs) and name not in FLAT
    return [
        Given(out, active and is_real(v.aval))
        for out, v in zip(outputs, equation.outvars, strict=True)
    ]


def _holds(equation: Any, takes: Takes) -> bool:
    """Is there something to see inside? The rest is evaluated as it is."""
    return any(
        takes(e) or _holds(e, takes)
        for inner in graphs_in(equation)
        for e in open_jaxpr(inner)[0].eqns
    )


def _scan(
    equation: Any, inputs: list[Given], visit: Visit, takes: Takes, here: Place
) -> list[Given]:
    params = equation.params
    n_consts, n_carry = lengths(params)
    consts, carry, xs = parts(inputs, n_consts, n_carry)
    length, rows = params["length"], [[] for _ in range(params["length"])]
    for i in reversed(range(length)) if params["reverse"] else range(length):
        place = Place(here.equations, (*here.steps, i))
        args = [*consts, *carry, *(Given(x.array[i], x.active) for x in xs)]
        outputs = visit_graph(params["jaxpr"], args, visit, takes, place)
        carry, rows[i] = outputs[:n_carry], outputs[n_carry:]
    if not length:
        kinds = [v.aval for v in equation.outvars[n_carry:]]
        return [*carry, *(Given(jnp.zeros(kind.shape, kind.dtype), False) for kind in kinds)]
    columns = zip(*rows, strict=True)
    stacks = [Given(jnp.stack([y.array for y in ys]), any(y.active for y in ys)) for ys in columns]
    return [*carry, *stacks]


def _cond(
    equation: Any, inputs: list[Given], visit: Visit, takes: Takes, here: Place
) -> list[Given]:
    branches = equation.params["branches"]
    taken = int(np.clip(int(inputs[0].array), 0, len(branches) - 1))
    return visit_graph(branches[taken], inputs[1:], visit, takes, here)


def _while(
    equation: Any, inputs: list[Given], visit: Visit, takes: Takes, here: Place
) -> list[Given]:
    params = equation.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, state = inputs[:n], inputs[n : n + m], inputs[n + m :]

    def more() -> Any:
        (found,) = visit_graph(params["cond_jaxpr"], [*of_test, *state], visit, _nothing, here)
        return found.array

    step = 0
    while (rows := more()).any():
        place = Place(here.equations, (*here.steps, step))
        turned = visit_graph(params["body_jaxpr"], [*of_body, *state], visit, takes, place)
        arrays = going_on(rows, [new.array for new in turned], [old.array for old in state])
        state = [new._replace(array=x) for new, x in zip(turned, arrays, strict=True)]
        step += 1
    return state


def _nothing(equation: Any) -> bool:
    return False


LOOPS = {"scan": _scan, "cond": _cond, "while": _while}
