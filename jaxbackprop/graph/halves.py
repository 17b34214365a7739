"""An inner graph in two halves: one ahead, one back, and the residuals that go between them.

The walk of a graph, there and back, is traced as one graph. What depends on the cotangents is the
half back; the rest is the half ahead. The values that cross from one to the other are the
*residuals*: what a loop stores of each step, what a checkpoint saves.

Which outputs get a cotangent is known on the way back only. The way ahead keeps what all of them
need; where fewer come, the walk back is that of those, and zeros that nobody asked for are never
formed: a zero times an infinite slope would be NaN.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.mutable import without_mutable
from jaxbackprop.graph.partition import Numbers, needed, needed_late, partition
from jaxbackprop.graph.rules import RULES, UnsupportedPrimitive
from jaxbackprop.graph.saved import evaluated, in_two_ways
from jaxbackprop.graph.walk import STRUCTURE, Tape, backward, forward

# Is a rule of custom_jvp being walked, from its tangents on? (`custom` and `recording` set it.)
ON_TANGENTS = ContextVar("on tangents", default=False)
# What a checkpoint around saves: a checkpoint inside of it keeps that too.
AROUND: ContextVar[Callable[[Any], bool] | None] = ContextVar("around", default=None)


def on_tangents(is_so: bool) -> contextlib.AbstractContextManager:
    return _while(ON_TANGENTS, is_so)


@contextlib.contextmanager
def _while(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def way_of_walking() -> tuple:
    """What a walk depends on beside its graph: the rules, as they are now."""
    return (ON_TANGENTS.get(), AROUND.get(), *RULES.values(), *STRUCTURE.values())


class Halves(NamedTuple):
    """`ahead(inputs) -> (outputs, residuals)`, and
    `back(at_hand, residuals, cts) -> the inputs' cotangents`, None where nothing reaches them.

    The cotangents are those of the outputs that depend on an input that wants one, in order. Where
    only some of them get one, `of(asked)` has the halves for these: its `back` is given the
    residuals of the whole, and after them its own, which its `ahead` makes: mostly there are none.
    """

    ahead: Callable[[list], tuple[list, list]]
    back: Callable[[list, list, list], list]
    residuals: list  # their types
    reached: list[bool]  # the inputs that get a cotangent
    read: list[bool]  # the inputs at hand that the way back looks at
    of: Callable[[Sequence[bool]], "Halves"]


def through(tape: Tape) -> tuple[list, Callable[[list], list]]:
    """The outputs of an inner tape, and its backward walk from the cotangents that matter."""

    def pull(cts):
        cts = [ct if a else None for ct, a in zip(cts, tape.active_outputs, strict=True)]
        return backward(tape, cts)

    return tape.outputs, pull


def pulled(parts: Halves, inputs: list, residuals: list, asked: Sequence[bool], cts: list) -> list:
    """The inputs' cotangents from those of the outputs that are asked; all inputs are at hand."""
    if not any(asked):
        return [None] * len(inputs)
    way = parts.of(asked)
    own = way.ahead(inputs)[1] if way.residuals else []
    given = [ct for ct, a in zip(cts, asked, strict=True) if a]
    return way.back(inputs, [*residuals, *own], given)


def asked_of(cts: Sequence, out_flags: Sequence[bool]) -> list[bool]:
    """The outputs that follow what is differentiated, and that have a cotangent."""
    return [flag and ct is not None for ct, flag in zip(cts, out_flags, strict=True)]


class Form(NamedTuple):
    """How a graph is cut, whichever cotangents come; see `halves`."""

    flags: tuple[bool, ...]
    at_hand: tuple[int, ...]
    fixed: tuple[int, ...]
    kept: Callable[[Any], bool] | None
    tangents: bool
    around: Callable[[Any], bool] | None


def halves(
    inner: Any,
    flags: Sequence[bool],
    out_flags: Sequence[bool],
    at_hand: Sequence[int] | None = None,
    fixed: Sequence[int] = (),
    kept: Callable[[Any], bool] | None = None,
) -> Halves:
    """The two halves of a graph.

    `at_hand` are the places of the inputs that the way back is given (all of them, if it is None),
    of which those in `fixed` are the same at every step of a loop. `kept` says of which equations
    the results may be kept, all if it is None: the others are evaluated again on the way back. So
    is what is computed from fixed inputs alone: the compiler takes that out of the loop.

    A graph of which a part has no way back has its values, and the ways back that avoid that part.
    """
    places = range(len(flags)) if at_hand is None else at_hand
    form = Form(tuple(flags), tuple(places), tuple(fixed), kept, ON_TANGENTS.get(), AROUND.get())
    key = (form, tuple(out_flags), way_of_walking())
    family = _MADE.setdefault(inner, {}).get(key)
    if family is None:
        family = Family(inner, form, out_flags)
        if not family.holds_tracers:
            _MADE[inner][key] = family
    return family.whole._replace(of=functools.partial(family.of, inner))


# The halves of the graphs that jax keeps, for as long as it keeps them.
_MADE: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()


class Family:
    """The halves of one graph: for the cotangents of all its outputs, and of some of them."""

    def __init__(self, inner: Any, form: Form, out_flags: Sequence[bool]) -> None:
        self.form, self.numbers, self.stored = form, Numbers(), []
        self.members: dict[tuple[bool, ...], Halves] = {}
        self.holds_tracers = False
        try:
            self.whole = self._made(inner, out_flags, first=True)
            self.members[tuple(out_flags)] = self.whole._replace(residuals=[])  # has them
        except UnsupportedPrimitive:  # a part has no way back, which perhaps nobody asks for
            self.whole = _values_only(inner, form)

    def of(self, inner: Any, asked: Sequence[bool]) -> Halves:
        if tuple(asked) in self.members:
            return self.members[tuple(asked)]
        found = self._made(inner, asked)
        if not self.holds_tracers:
            self.members[tuple(asked)] = found
        return found

    def _made(self, inner: Any, asked: Sequence[bool], first: bool = False) -> Halves:
        saved = self.form.kept or self.form.around
        with on_tangents(self.form.tangents), _while(AROUND, saved):
            graph, reached = joined(*open_jaxpr(inner), self.form.flags, asked)
        self.holds_tracers |= any(isinstance(c, Tracer) for c in graph.consts)
        numbers = self.numbers.of(graph, len(self.form.flags))
        place = {number: i for i, number in enumerate(self.stored)}
        stored = {v: place[number] for v, number in numbers.items() if number in place}
        found, residuals = _in_two(graph, reached, self.form, len(asked), stored, first)
        if first:
            self.stored = [numbers.get(v) for v in residuals]
        return found


def joined(
    jaxpr: Any, consts: Sequence, flags: Sequence[bool], asked: Sequence[bool]
) -> tuple[Any, list[bool]]:
    """(inputs, cotangents) ↦ (outputs, gradients) of a graph, as one graph; the cotangents are
    those of the outputs `asked`, the gradients by the inputs that `flags` marks. And which of the
    inputs a cotangent reaches."""
    reached = []

    def walked(inputs, cts):
        outputs, pull = through(forward(jaxpr, consts, inputs, flags))
        given = iter(cts)
        found = pull([next(given) if a else None for a in asked])
        reached[:] = [g is not None and flag for g, flag in zip(found, flags, strict=True)]
        wanted = [
            jnp.zeros_like(x) if g is None else jnp.asarray(g, x.dtype)
            for x, g, flag in zip(inputs, found, flags, strict=True)
            if flag
        ]
        return outputs, wanted

    cts = [v.aval for v, a in zip(jaxpr.outvars, asked, strict=True) if a]
    graph = jax.make_jaxpr(walked)([v.aval for v in jaxpr.invars], cts)
    return without_mutable(graph), reached  # a rule of one's own may have some


def _in_two(
    graph: Any, reached: list[bool], form: Form, n_outputs: int, stored: dict, acting: bool
) -> tuple[Halves, list]:
    """The halves of a graph there and back, and the variables of its residuals, beside the `stored`
    ones; `acting`: ahead, what does something beside computing is done too."""
    jaxpr, n = graph.jaxpr, len(form.flags)
    base = dict(zip(jaxpr.constvars, graph.consts, strict=True))
    own, ct_variables = jaxpr.invars[:n], jaxpr.invars[n:]
    given = [own[i] for i in form.at_hand]
    outputs, found = jaxpr.outvars[:n_outputs], iter(jaxpr.outvars[n_outputs:])
    wanted = [next(found) if flag else None for flag in form.flags]
    gradients = [v for v, there in zip(wanted, reached, strict=True) if there]
    steady = {*jaxpr.constvars, *(own[i] for i in form.fixed)}
    at_hand = {*jaxpr.constvars, *given, *ct_variables, *stored}
    early, late, again = partition(jaxpr.eqns, ct_variables, steady, form.kept)
    again = [e for e in again if not any(v in stored for v in e.outvars)]
    if form.kept is not None:
        live = needed(late, gradients)[1]
        early, again, _ = in_two_ways(early, again, live, form.kept)
    late, residuals = needed_late(early, late, again, gradients, at_hand, form.kept is None)
    early, _ = needed(early, [*outputs, *residuals], acting)

    def ahead(inputs):
        values = base | dict(zip(own, inputs, strict=True))
        found = evaluated(early, values, [*outputs, *residuals])
        return found[:n_outputs], found[n_outputs:]

    def back(at_hand, kept, cts):
        values = base | {v: kept[place] for v, place in stored.items()}
        names = (*given, *residuals, *ct_variables)
        rest = kept[len(kept) - len(residuals) :]
        values |= dict(zip(names, (*at_hand, *rest, *cts), strict=True))
        found = iter(evaluated(late, values, gradients))
        return [next(found) if there else None for there in reached]

    looked_at = needed(late, gradients)[1]
    read = [v in looked_at for v in given]
    return Halves(ahead, back, [v.aval for v in residuals], reached, read, _alone), residuals


def _values_only(inner: Any, form: Form) -> Halves:
    jaxpr, consts = open_jaxpr(inner)

    def ahead(inputs):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        return evaluated(jaxpr.eqns, values, jaxpr.outvars), []

    return Halves(ahead, _alone, [], list(form.flags), [True] * len(form.at_hand), _alone)


def _alone(*_: Any) -> Any:
    raise AssertionError("asked for by `of`")
