"""A graph evaluated with a visit to chosen sites.

`evaluate` runs the equations as they are, and visits those that have a chosen site: what a visit
sees of values is returned, and what it hears of gradients is the gradient of its *ear*, an input of
the visit's own. Calls, loops and branches are entered only where something is chosen inside; a scan
takes its ears as slices and stacks what is seen, so that every step is told apart.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jaxbackprop.graph import walk
from jaxbackprop.graph.dependence import CALLS, lengths, open_jaxpr, parts
from jaxbackprop.graph.watching.sites import REMAT, Around, Site, called, key_of

Ears = dict[int, Any]  # by the number of the site
Values = dict[int, tuple[Any, Any]]  # what was seen; and in a branch, was it taken


class Visit(NamedTuple):
    """What is done at an equation with a chosen site.

    outputs: those of a loop or branch, which has been run; None where it is for the visit to do.
    numbers: of the site of each output that has one.
    """

    equation: Any
    inputs: list
    outputs: list | None
    numbers: dict[int, int]
    ears: Ears

    def run(self) -> list:
        if self.outputs is not None:
            return self.outputs
        return walk.evaluate(self.equation, self.inputs)


Visitor = Callable[[Visit], tuple[list, dict[int, Any]]]


class Plan(NamedTuple):
    """The chosen sites, their numbers by key, and by way those that it leads to."""

    sites: tuple[Site, ...]
    numbers: dict[tuple, int]
    inside: dict[tuple, list[int]]
    visitor: Visitor


def plan(chosen: Sequence[Site], visitor: Visitor) -> Plan:
    numbers = {site.key: n for n, site in enumerate(chosen)}
    inside: dict[tuple, list[int]] = {}
    for n, site in enumerate(chosen):
        for depth in range(1, len(site.place)):
            inside.setdefault(_without_branch(site.place[:depth]), []).append(n)
    return Plan(tuple(chosen), numbers, inside, visitor)


def evaluate(
    plan: Plan, graph: Any, args: Sequence, ears: Ears, place: tuple[Around, ...] = ()
) -> tuple[list, Values]:
    """The outputs of a graph, closed or not, and what was seen at its sites."""
    jaxpr, consts = open_jaxpr(graph)
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    seen: Values = {}
    for equation in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
        here = (*place, Around(equation))
        within = plan.inside.get(_without_branch(here), ())
        numbers = {
            k: plan.numbers[key]
            for k in range(len(equation.outvars))
            if (key := (*key_of(here), k)) in plan.numbers
        }
        outputs = None
        if within:
            enter = ENTER[equation.primitive.name]
            own = {n: ears[n] for n in within if n in ears}
            outputs, found = enter(plan, equation, inputs, own, place)
            seen |= found
        if numbers:
            outputs, found = plan.visitor(Visit(equation, inputs, outputs, numbers, ears))
            seen |= {n: (each, None) for n, each in found.items()}
        elif outputs is None:
            outputs = walk.evaluate(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    outputs = [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]
    return outputs, seen


def _without_branch(place: Sequence[Around]) -> tuple[int, ...]:
    return key_of(place)[:-1]


Enter = Callable[[Plan, Any, list, Ears, tuple[Around, ...]], tuple[list, Values]]


def _call(
    plan: Plan, equation: Any, inputs: list, ears: Ears, place: tuple[Around, ...]
) -> tuple[list, Values]:
    return evaluate(plan, called(equation.params), inputs, ears, (*place, Around(equation)))


def _remat(
    plan: Plan, equation: Any, inputs: list, ears: Ears, place: tuple[Around, ...]
) -> tuple[list, Values]:
    params = equation.params
    options = {name: params[name] for name in ("prevent_cse", "policy")}

    def inner(inputs, ears):
        return evaluate(plan, params["jaxpr"], inputs, ears, (*place, Around(equation)))

    return jax.checkpoint(inner, **options)(inputs, ears)


def _cond(
    plan: Plan, equation: Any, inputs: list, ears: Ears, place: tuple[Around, ...]
) -> tuple[list, Values]:
    """Of a branch that is not taken nothing is seen: zeros, and a flag that says so."""
    which, operands = inputs[0], inputs[1:]

    def run(i, branch):
        at = (*place, Around(equation, i))
        return lambda operands, ears: evaluate(plan, branch, operands, ears, at)

    branches = [run(i, branch) for i, branch in enumerate(equation.params["branches"])]
    kinds: Values = {}
    for branch in branches:
        kinds |= jax.eval_shape(branch, operands, ears)[1]

    around = sum(each.equation.primitive.name == "scan" for each in place)

    def flagged(n, found, taken):
        return found, jnp.full(plan.sites[n].steps[around:], taken)

    def whole(branch):
        def completed(operands, ears):
            outputs, seen = branch(operands, ears)
            empty = jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), kinds)
            return outputs, {
                n: flagged(n, empty[n][0], False)
                if n not in seen
                else flagged(n, seen[n][0], True)
                if seen[n][1] is None
                else seen[n]
                for n in kinds
            }

        return completed

    return lax.switch(which, [whole(branch) for branch in branches], operands, ears)


def _scan(
    plan: Plan, equation: Any, inputs: list, ears: Ears, place: tuple[Around, ...]
) -> tuple[list, Values]:
    params = equation.params
    n_consts, n_carry = lengths(params)
    consts, start, xs = parts(inputs, n_consts, n_carry)

    def step(carry, slices):
        x, ears = slices
        at = (*place, Around(equation))
        outputs, seen = evaluate(plan, params["jaxpr"], [*consts, *carry, *x], ears, at)
        return outputs[:n_carry], (outputs[n_carry:], seen)

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    end, (ys, seen) = lax.scan(step, start, (xs, ears), **options)
    return [*end, *ys], seen


ENTER: dict[str, Enter] = {
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(REMAT, _remat),
    "cond": _cond,
    "scan": _scan,
}
