"""An inner graph in two halves: one ahead, one back, and the residuals that go between them.

The walk of a graph, there and back, is traced as one graph. What depends on the cotangents is the
half back; the rest is the half ahead. The values that cross from one to the other are the
*residuals*: what a loop stores of each step, what a checkpoint saves.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Literal

from jaxbackprop.graph.rules import RULES
from jaxbackprop.graph.walk import STRUCTURE, Tape, backward, evaluate, forward, is_flat, is_real

# Is a rule of custom_jvp being walked, from its tangents on? (`custom` and `recording` set it.)
ON_TANGENTS = ContextVar("on tangents", default=False)


@contextlib.contextmanager
def on_tangents(is_so: bool) -> Iterator[None]:
    token = ON_TANGENTS.set(is_so)
    try:
        yield
    finally:
        ON_TANGENTS.reset(token)


def way_of_walking() -> tuple:
    """What a walk depends on beside its graph: the rules, as they are now."""
    return (ON_TANGENTS.get(), *RULES.values(), *STRUCTURE.values())


class Halves(NamedTuple):
    """`ahead(inputs) -> (outputs, residuals)`, and
    `back(at_hand, residuals, cts) -> the inputs' cotangents`, None where none is wanted.

    The cotangents are those of the outputs that depend on an input that wants one, in order.
    """

    ahead: Callable[[list], tuple[list, list]]
    back: Callable[[list, list, list], list]
    residuals: list  # their types


def open_jaxpr(inner: Any) -> tuple[Any, Sequence]:
    """(jaxpr, consts) of an inner graph, closed or not."""
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def through(tape: Tape) -> tuple[list, Callable[[list], list]]:
    """The outputs of an inner tape, and its backward walk from the cotangents that matter."""

    def pull(cts):
        cts = [ct if a else None for ct, a in zip(cts, tape.active_outputs, strict=True)]
        return backward(tape, cts)

    return tape.outputs, pull


def dependence(
    jaxpr: Any, active: Sequence[bool], n_consts: int = 0, n_carry: int = 0
) -> tuple[list[bool], list[bool]]:
    """Which inputs and outputs of the body of a loop, or of any graph, want a gradient.

    A carry does as soon as any step makes it depend on something that does: the smallest fixed
    point.
    """
    flags = [a and is_real(v.aval) for a, v in zip(active, jaxpr.invars, strict=True)]
    while True:
        wanted = {v for v, a in zip(jaxpr.invars, flags, strict=True) if a}
        for equation in jaxpr.eqns:
            if not is_flat(equation) and any(v in wanted for v in reads(equation)):
                wanted.update(v for v in equation.outvars if is_real(v.aval))
        outs = [not isinstance(v, Literal) and v in wanted for v in jaxpr.outvars]
        carry = [
            old or new for old, new in zip(flags[n_consts : n_consts + n_carry], outs, strict=False)
        ]
        grown = [*flags[:n_consts], *carry, *flags[n_consts + n_carry :]]
        if grown == flags:
            return flags, [*carry, *outs[n_carry:]]
        flags = grown


def reads(equation: Any) -> list:
    return [v for v in equation.invars if not isinstance(v, Literal)]


def acts(equation: Any) -> bool:
    """Does it do something beside computing? (A collective only needs its axis to be there.)"""
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in equation.effects)


# The halves of the graphs that jax keeps, for as long as it keeps them.
_MADE: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()


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
    """
    at_hand = range(len(flags)) if at_hand is None else at_hand
    key = (*map(tuple, (flags, out_flags, at_hand, fixed)), kept, way_of_walking())
    made = _MADE.setdefault(inner, {})
    if key in made:
        return made[key]
    whole = there_and_back(*open_jaxpr(inner), flags, out_flags)
    found = _split(whole, flags, out_flags, at_hand, fixed, kept)
    if not any(isinstance(c, Tracer) for c in open_jaxpr(whole)[1]):
        made[key] = found
    return found


def there_and_back(
    jaxpr: Any, consts: Sequence, flags: Sequence[bool], out_flags: Sequence[bool]
) -> Any:
    """(inputs, cotangents) ↦ (outputs, gradients) of a graph, as one graph; the cotangents are
    those of the outputs that `out_flags` marks, the gradients by the inputs that `flags` does."""

    def walked(inputs, cts):
        outputs, pull = through(forward(jaxpr, consts, inputs, flags))
        given = iter(cts)
        found = pull([next(given) if flag else None for flag in out_flags])
        wanted = [
            jnp.zeros_like(x) if g is None else jnp.asarray(g, x.dtype)
            for x, g, flag in zip(inputs, found, flags, strict=True)
            if flag
        ]
        return outputs, wanted

    cts = [v.aval for v, flag in zip(jaxpr.outvars, out_flags, strict=True) if flag]
    return jax.make_jaxpr(walked)([v.aval for v in jaxpr.invars], cts)


def _split(
    whole: Any,
    flags: Sequence[bool],
    out_flags: Sequence[bool],
    at_hand: Sequence[int],
    fixed: Sequence[int],
    kept: Callable[[Any], bool] | None,
) -> Halves:
    jaxpr, consts = open_jaxpr(whole)
    base = dict(zip(jaxpr.constvars, consts, strict=True))
    own, ct_variables = jaxpr.invars[: len(flags)], jaxpr.invars[len(flags) :]
    given = [own[i] for i in at_hand]
    outputs, gradients = jaxpr.outvars[: len(out_flags)], jaxpr.outvars[len(out_flags) :]
    steady = {*jaxpr.constvars, *(own[i] for i in fixed)}
    early, late, again = _partition(jaxpr.eqns, ct_variables, steady, kept)
    at_hand_too = {*jaxpr.constvars, *given, *ct_variables}
    residuals = _residuals([*again, *late], gradients, at_hand_too)
    if kept is None:
        made = {v for equation in again for v in equation.outvars}
        again = _in_order(early, [*again, *_light(early, residuals, {*at_hand_too, *made})])
        residuals = _residuals([*again, *late], gradients, at_hand_too)
    late, _ = _needed([*again, *late], gradients)
    early, _ = _needed(early, [*outputs, *residuals])

    def ahead(inputs):
        values = base | dict(zip(own, inputs, strict=True))
        _run(early, values)
        return _read(values, outputs), _read(values, residuals)

    def back(at_hand, kept, cts):
        names, found = (*given, *residuals, *ct_variables), (*at_hand, *kept, *cts)
        values = base | dict(zip(names, found, strict=True))
        _run(late, values)
        wanted = iter(_read(values, gradients))
        return [next(wanted) if flag else None for flag in flags]

    return Halves(ahead, back, [v.aval for v in residuals])


def _partition(
    equations: Sequence, ct_variables: Sequence, steady: set, kept: Callable[[Any], bool] | None
) -> tuple[list, list, list]:
    """(forward equations, backward equations, those of the forward ones to be evaluated again)."""
    late_variables = set(ct_variables)
    early, late, again = [], [], []
    for equation in equations:
        if any(v in late_variables for v in reads(equation)):
            late_variables.update(equation.outvars)
            late.append(equation)
            continue
        early.append(equation)
        if acts(equation):
            continue
        if all(v in steady for v in reads(equation)):
            steady.update(equation.outvars)
            again.append(equation)
        elif kept is not None and not kept(equation):
            again.append(equation)
    return early, late, again


def _residuals(late: Sequence, gradients: Sequence, at_hand: set) -> list:
    """What the way back reads that it neither is given nor makes."""
    late, live = _needed(late, gradients)
    made = {v for equation in late for v in equation.outvars}
    return [v for v in live if v not in made and v not in at_hand]


# Cheaper to make again than to store and to read.
LIGHT = {"add", "sub", "mul", "neg", "square", "integer_pow", "max", "min", "abs", "select_n"}
LIGHT |= {"gt", "ge", "lt", "le", "eq", "ne", "not", "and", "or", "convert_element_type"}
LIGHT |= {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy"}
DEPTH = 4  # equations from what is kept to what is made


def _light(early: Sequence, residuals: Sequence, at_hand: set) -> list:
    """The equations that make residuals from other ones, number by number: a tanh is kept for its
    own sake, and its slope 1 − a² need not be."""
    makers = {v: e for e in early if e.primitive.name in LIGHT for v in e.outvars}
    kept = {*at_hand, *residuals}

    def making(v, depth):
        """The equations that make v from what is kept; None where it takes other ones, or many."""
        if v in kept:
            return []
        if v not in makers or depth == 0:
            return None
        parts = [making(u, depth - 1) for u in reads(makers[v])]
        return None if None in parts else [makers[v], *(e for part in parts for e in part)]

    light = []
    places = {v: i for i, e in enumerate(early) for v in e.outvars}
    for v in sorted(residuals, key=lambda v: places.get(v, -1), reverse=True):
        kept.discard(v)
        found = making(v, DEPTH)
        if found is None:
            kept.add(v)
        light += found or []
    return light


def _in_order(equations: Sequence, chosen: Sequence) -> list:
    places = {id(equation) for equation in chosen}
    return [equation for equation in equations if id(equation) in places]


def _needed(equations: Sequence, results: Sequence) -> tuple[list, dict]:
    """The equations that the results need, or that act; and all variables that these read."""
    live = {v: None for v in results if not isinstance(v, Literal)}  # a set that keeps its order
    needed = []
    for equation in reversed(equations):
        if acts(equation) or any(v in live for v in equation.outvars):
            needed.append(equation)
            live.update(dict.fromkeys(reads(equation)))
    return needed[::-1], live


def _run(equations: list, values: dict) -> None:
    for equation in equations:
        found = evaluate(equation, _read(values, equation.invars))
        values.update(zip(equation.outvars, found, strict=True))


def _read(values: dict, variables: Sequence) -> list:
    return [v.val if isinstance(v, Literal) else values[v] for v in variables]
