"""A graph there and back cut in two: what depends on the cotangents, and what does not."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal


def reads(equation: Any) -> list:
    return [v for v in equation.invars if not isinstance(v, Literal)]


def acts(equation: Any) -> bool:
    """Does it do something beside computing? (A collective only needs its axis to be there.)"""
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in equation.effects)


# Of these a policy is asked inside, and not of the operation: see `saved`.
OPENED = ("scan", "jit", "pjit", "closed_call", "core_call")


def partition(
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
        elif kept is not None and (equation.primitive.name in OPENED or not kept(equation)):
            again.append(equation)
    return early, late, again


def needed_late(
    early: Sequence, late: Sequence, again: Sequence, gradients: list, at_hand: set, lightly: bool
) -> tuple[list, list]:
    """What the way back evaluates, and the residuals that it reads besides what is at hand;
    lightly: what is cheap to make is none of these."""
    residuals = _unmade([*again, *late], gradients, at_hand)
    if lightly:
        made = {v for equation in again for v in equation.outvars}
        again = _in_order(early, [*again, *_light(early, residuals, {*at_hand, *made})])
        residuals = _unmade([*again, *late], gradients, at_hand)
    return needed([*again, *late], gradients)[0], residuals


def _unmade(late: Sequence, gradients: Sequence, at_hand: set) -> list:
    """What the way back reads that it neither is given nor makes."""
    late, live = needed(late, gradients)
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


def needed(equations: Sequence, results: Sequence, acting: bool = True) -> tuple[list, dict]:
    """The equations that the results need, or that act (if those are wanted), and all variables
    that these read."""
    live = {v: None for v in results if not isinstance(v, Literal)}  # a set that keeps its order
    needed = []
    for equation in reversed(equations):
        if (acting and acts(equation)) or any(v in live for v in equation.outvars):
            needed.append(equation)
            live.update(dict.fromkeys(reads(equation)))
    return needed[::-1], live


class Numbers:
    """The same number for what is computed in the same way, in one graph or another."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}
        self.constants: list[Any] = []

    def of(self, graph: Any, n_inputs: int) -> dict[Any, int]:
        """By variable; of a graph whose first inputs are the same as in the others."""
        jaxpr = graph.jaxpr
        keys = [("input", i) if i < n_inputs else object() for i in range(len(jaxpr.invars))]
        found = {v: self._number(key) for v, key in zip(jaxpr.invars, keys, strict=True)}
        for v, constant in zip(jaxpr.constvars, graph.consts, strict=True):
            self.constants.append(constant)  # as long as it is held, no other has its id
            found[v] = self._number(("constant", id(constant)))
        for equation in jaxpr.eqns:
            key = self._key(equation, found)
            for i, v in enumerate(equation.outvars):
                found[v] = self._number((key, i))
        return found

    def _number(self, key: Any) -> int:
        return self.known.setdefault(key, len(self.known))

    def _key(self, equation: Any, found: dict) -> Any:
        inputs = tuple(
            (v.aval, np.asarray(v.val).tobytes()) if isinstance(v, Literal) else found[v]
            for v in equation.invars
        )
        key = (equation.primitive, tuple(equation.params.items()), inputs)
        try:
            hash(key)
        except TypeError:
            return object()
        return object() if acts(equation) else self._number(key)
