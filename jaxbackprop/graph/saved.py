"""What a policy saves inside of a loop or a call: such an operation is evaluated in two ways.

Ahead it gives what the policy saves in it beside its outputs: of a scan stacked, a row a step. On
the way back it is evaluated again from these, and what is saved, or is only needed for what is
saved, is not computed again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Literal, gensym

from jaxbackprop.graph.dependence import lengths, open_jaxpr, parts
from jaxbackprop.graph.partition import OPENED, partition, reads
from jaxbackprop.graph.walk import context, evaluate, from_line

Kept = Callable[[Any], bool]
new_variable = gensym()


class Way(NamedTuple):
    """One of the two ways of an equation, which stands for it among the equations of a graph."""

    of: Any
    invars: list
    outvars: list
    run: Callable[[list], list]

    @property
    def effects(self) -> Any:
        return self.of.effects


class Inside(NamedTuple):
    """A graph in two: what is done ahead, what is done again for some results, and what the second
    reads of the first."""

    ahead: list
    again: list
    saved: list
    live: dict  # what is read again, and the results


def in_two_ways(
    early: Sequence, again: Sequence, live: Iterable, kept: Kept
) -> tuple[list, list, dict]:
    """The equations ahead, and those of `again` that what is `live` needs, each in its way; and
    what is read then."""
    wanted: dict = dict.fromkeys(live)  # a set that keeps its order
    firsts, seconds = {}, []
    for equation in reversed(again):
        if any(v in wanted for v in equation.outvars):
            firsts[id(equation)], second = _both(equation, wanted, kept)
            seconds.append(second)
            wanted.update(dict.fromkeys(reads(second)))
    return [firsts.get(id(e), e) for e in early], seconds[::-1], wanted


def evaluated(equations: Sequence, values: dict, results: Sequence) -> list:
    """The results, from the values of what the equations read."""
    for equation in equations:
        inputs = _read(values, equation.invars)
        if isinstance(equation, Way):
            with context(equation.of), from_line(equation.of):
                found = equation.run(inputs)
        else:
            found = evaluate(equation, inputs)
        values.update(zip(equation.outvars, found, strict=True))
    return _read(values, results)


def _read(values: dict, variables: Sequence) -> list:
    return [v.val if isinstance(v, Literal) else values[v] for v in variables]


def _both(equation: Any, live: dict, kept: Kept) -> tuple[Any, Any]:
    name = equation.primitive.name
    if name not in OPENED:
        return equation, equation
    return (_scan if name == "scan" else _call)(equation, live, kept)


def _call(equation: Any, live: dict, kept: Kept) -> tuple[Any, Any]:
    """A jitted function that no gradient goes through: its equations are those of the graph."""
    inner = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
    jaxpr, consts = open_jaxpr(inner)
    wanted = [v in live for v in equation.outvars]
    inside = _inside(jaxpr, _some(jaxpr.outvars, wanted), [], kept)
    base = dict(zip(jaxpr.constvars, consts, strict=True))

    def way(equations, invars, outvars, counts):
        return lambda inputs: evaluated(
            equations, base | dict(zip(invars, inputs, strict=True)), outvars
        )

    used = [v in inside.live for v in jaxpr.invars]
    return _ways(equation, jaxpr, inside, (used, wanted), (0, 0), way)


def _scan(equation: Any, live: dict, kept: Kept) -> tuple[Any, Any]:
    """Again only what a step reads, or ends in, is carried from step to step."""
    jaxpr, consts = open_jaxpr(equation.params["jaxpr"])
    options = {name: equation.params[name] for name in ("length", "unroll", "reverse")}
    n_consts, n_carry = lengths(equation.params)
    wanted = [v in live for v in equation.outvars]
    while True:
        results = _some(jaxpr.outvars, wanted)
        inside = _inside(jaxpr, results, jaxpr.invars[:n_consts], kept)
        used = [v in inside.live for v in jaxpr.invars]
        carried = [a or b for a, b in zip(wanted[:n_carry], used[n_consts:], strict=False)]
        if carried == wanted[:n_carry]:
            break
        wanted[:n_carry] = carried
    used[n_consts : n_consts + n_carry] = carried
    base = dict(zip(jaxpr.constvars, consts, strict=True))

    def way(equations, invars, outvars, counts):
        def run(inputs):
            fixed, start, xs = parts(inputs, *counts)

            def step(carry, x):
                values = base | dict(zip(invars, (*fixed, *carry, *x), strict=True))
                found = evaluated(equations, values, outvars)
                return found[: len(start)], found[len(start) :]

            end, ys = lax.scan(step, start, xs, **options)
            return [*end, *ys]

        return run

    return _ways(equation, jaxpr, inside, (used, wanted), (n_consts, n_carry), way)


def _ways(
    equation: Any,
    jaxpr: Any,
    inside: Inside,
    again: tuple[list[bool], list[bool]],
    counts: tuple[int, int],
    way: Callable,
) -> tuple[Any, Any]:
    """The two ways of an equation; `again`: which inputs are read then, which outputs are wanted;
    `way` makes a function of equations, of what they start from and end in."""
    if not inside.saved:
        return equation, equation
    (used, wanted), (n_consts, n_carry) = again, counts
    left = sum(used[:n_consts]), sum(used[n_consts : n_consts + n_carry])
    starts, ends = _some(jaxpr.invars, used), _some(jaxpr.outvars, wanted)
    ahead = way(inside.ahead, jaxpr.invars, [*jaxpr.outvars, *inside.saved], counts)
    back = way(inside.again, [*starts, *inside.saved], ends, left)
    types = jax.make_jaxpr(lambda *xs: ahead(xs))(*(v.aval for v in equation.invars)).out_avals
    rows = [new_variable(aval) for aval in types[len(jaxpr.outvars) :]]
    first = Way(equation, equation.invars, [*equation.outvars, *rows], ahead)
    invars, outvars = _some(equation.invars, used), _some(equation.outvars, wanted)
    return first, Way(equation, [*invars, *rows], outvars, back)


def _inside(jaxpr: Any, results: Sequence, fixed: Sequence, kept: Kept) -> Inside:
    early, _, again = partition(jaxpr.eqns, (), {*jaxpr.constvars, *fixed}, kept)
    results = [v for v in results if not isinstance(v, Literal)]
    ahead, again, live = in_two_ways(early, again, results, kept)
    there = {*jaxpr.constvars, *jaxpr.invars, *(v for e in again for v in e.outvars)}
    return Inside(ahead, again, [v for v in live if v not in there], live)


def _some(values: Sequence, wanted: Sequence[bool]) -> list:
    return [v for v, there in zip(values, wanted, strict=True) if there]
