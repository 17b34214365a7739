"""One step of a loop, laid out once and without values, and the whole loop run by it.

A step is laid out on tracers: what comes of it is a *template*, its operations and which of their
values are which. One compiled scan then computes the values of all steps, one more their gradients,
and step i is the template filled with the i-th slices. A step whose layout depends on values (a
`while`, a branch), that has effects, or holds an operation without a rule, has no template.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from jaxbackprop.graph.dependence import parts
from jaxbackprop.graph.halves import way_of_walking
from jaxbackprop.graph.inspection.laying import inside
from jaxbackprop.graph.inspection.steps import (
    AT_THE_TOP,
    Ends,
    HasNoTemplate,
    Log,
    Step,
    Unknown,
    Value,
)
from jaxbackprop.graph.inspection.tracing import LOOKS_AT_A_VALUE
from jaxbackprop.graph.loop import once
from jaxbackprop.graph.walk import Tape, add, backward


class Form(NamedTuple):
    """A loop but for its numbers: its step, how many constants and carried values, how often and in
    which order; and of each input whether it is active, whether it is a tangent, and the type."""

    body: Any
    n_consts: int
    n_carry: int
    length: int
    reverse: bool
    kinds: tuple[tuple[bool, bool], ...]
    types: tuple


class Slot(NamedTuple):
    """In a template, in place of an array: the n-th input of the step, or the n-th that is kept."""

    given: bool
    number: int


class Template(NamedTuple):
    """The operations of a step, and its ends; and what keeps their arrays from all steps."""

    steps: list[Step]
    ends: Ends
    ahead: Callable


def template_of(form: Form) -> Template | None:
    return _template(form, way_of_walking())


@functools.lru_cache(maxsize=64)
def _template(form: Form, _way: tuple) -> Template | None:
    if form.body.effects:
        return None
    found = []

    def step(*arrays):
        log, ends = _laid_out(form, arrays)
        values = dict.fromkeys(_reached(log.steps, ends))
        slots = {id(x): Slot(True, k) for k, x in enumerate(arrays)}
        kept = {id(v.array): v.array for v in values if isinstance(v.array, Tracer)}
        kept = {key: x for key, x in kept.items() if key not in slots}
        slots |= {key: Slot(False, k) for k, key in enumerate(kept)}
        outputs = [v.array for v in ends.outvars]
        for v in values:
            v.array = slots.get(id(v.array), v.array)
        found[:] = [(log.steps, ends)]
        return outputs, list(kept.values())

    try:
        graph = jax.make_jaxpr(step)(*form.types)
    except (HasNoTemplate, *LOOKS_AT_A_VALUE):
        return None
    ((steps, ends),) = found
    carried = [(v.active, v.tangent) for v in ends.outvars[: form.n_carry]]
    if carried != list(form.kinds[form.n_consts : form.n_consts + form.n_carry]):
        return None
    return Template(steps, ends, jax.jit(_all_ahead(form, jaxpr_as_fun(graph))))


def _laid_out(form: Form, arrays: Sequence) -> tuple[Log, Ends]:
    log = Log([], [], without_values=True)
    inputs = [Value(x, *kind) for x, kind in zip(arrays, form.kinds, strict=True)]
    outputs = inside(log, form.body, inputs, AT_THE_TOP)
    return log, Ends(inputs, outputs)


class Back(NamedTuple):
    """The way back through a step whose outputs have these cotangents: `one` step, or `all`, last
    one first, where what the carry is sent has the form of what it got, and None where not.

    `seen`: of each operation, by its number, where among the arrays its cotangents are, and its
    contributions."""

    one: Callable
    all: Callable | None
    seen: dict[int, tuple[tuple, tuple]]


def back_of(form: Form, asked: tuple[bool, ...]) -> Back | None:
    return _back(form, asked, way_of_walking())


@functools.lru_cache(maxsize=256)
def _back(form: Form, asked: tuple[bool, ...], _way: tuple) -> Back | None:
    """None where a gradient is unknown."""
    n_consts, n_carry, places = form.n_consts, form.n_carry, []

    def step(consts, carry, x, cts):
        """The cotangents of the inputs; and the distinct arrays that the walk saw."""
        log, ends = _laid_out(form, [*consts, *carry, *x])
        numbers, seen = {step: n for n, step in enumerate(log.steps)}, {}

        def observe(node, cts, contributions):
            if any(isinstance(c, Unknown) for c in contributions):
                raise HasNoTemplate
            seen[numbers[node.equation]] = (tuple(cts), tuple(contributions))

        arrays, active = [v.array for v in ends.outvars], [v.active for v in ends.outvars]
        sent = backward(Tape(ends, log.nodes, arrays, active), cts, observe)
        arrays, tree = jax.tree.flatten(seen)
        distinct, order = once(arrays)
        places[:] = [jax.tree.unflatten(tree, order)]
        return parts(sent, n_consts, n_carry), distinct

    def turn(consts, state, slices):
        totals, cts = state
        _, carry, x, ct_ys = slices
        (of_consts, of_carry, of_x), seen = step(consts, carry, x, [*cts, *ct_ys])
        totals = [t if g is None else add(t, g) for t, g in zip(totals, of_consts, strict=True)]
        return (totals, of_carry), (of_x, seen)

    def every(places, consts, carries, xs, cts, ct_ys):
        slices = (places, carries, xs, ct_ys)
        totals = [jnp.zeros_like(c) if a else None for c, a in zip(consts, reached, strict=True)]
        back = functools.partial(turn, consts)
        ((totals, cts), rest) = lax.scan(back, (totals, cts), slices, reverse=not form.reverse)
        return (totals, cts, rest[0]), rest[1]

    given = parts(form.types, n_consts, n_carry)
    cts = [t if a else None for t, a in zip(form.body.out_avals, asked, strict=True)]
    try:
        (of_consts, of_carry, _), _ = jax.eval_shape(step, *given, cts)
    except HasNoTemplate:
        return None
    reached = [g is not None for g in of_consts]
    wanted = [*(t if a else None for t, a in zip(given[0], reached, strict=True)), *cts[:n_carry]]
    keeps = list(map(_kind, (*of_consts, *of_carry))) == list(map(_kind, wanted))
    return Back(jax.jit(step), jax.jit(every) if keeps else None, places[0])


def _kind(x: Any) -> Any:
    """A rule of one's own may send another dtype than a value's, which no scan could carry."""
    return None if x is None else (x.shape, x.dtype)


def _reached(steps: Sequence[Step], ends: Ends) -> Iterator[Value]:
    for v in (*ends.invars, *ends.outvars):
        yield from _with_sources(v)
    for step in steps:
        for v in (*step.invars, *step.outvars, *step.operands, *step.inside):
            yield from _with_sources(v)


def _with_sources(v: Value | None) -> Iterator[Value]:
    while v is not None:
        yield v
        v = v.source


def _all_ahead(form: Form, step: Callable) -> Callable:
    """(consts, carry, xs) ↦ (what each step was given in the carry, what it kept, the ends)."""

    def ahead(consts, carry, xs):
        def turn(carry, x):
            found = step(*consts, *carry, *x)
            outputs, kept = found[:n_outputs], found[n_outputs:]
            return outputs[: form.n_carry], (carry, outputs[form.n_carry :], kept)

        return lax.scan(turn, carry, xs, reverse=form.reverse, length=form.length)

    n_outputs = len(form.body.out_avals)
    return ahead
