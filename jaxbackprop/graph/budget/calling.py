"""A function as one program, and a first call that runs the program it has tried.

A plan is held against its program. Inside of a user's jit that is a program of its own, compiled
for nothing but its bytes. A call on arrays is a program already: its first plan is taken untried,
and the program tells whether it fits. Only where it does not is a next one tried beforehand.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import jax
import numpy as np
from jax.core import Tracer

from jaxbackprop.graph.budget.groups import Groups
from jaxbackprop.graph.budget.planning import Measure, compiled_bytes
from jaxbackprop.graph.budget.simulation import Order

# What tells the bytes of a plan's program; None: the program compiled for that.
MEASURED_BY: ContextVar[Measure | None] = ContextVar("measured by", default=None)


@contextlib.contextmanager
def measured_by(measure: Measure | None) -> Iterator[None]:
    token = MEASURED_BY.set(measure)
    try:
        yield
    finally:
        MEASURED_BY.reset(token)


class Attempt:
    """The programs of one call, as they are tried. `needed`: the bytes of those that were compiled
    whole, by their number; the others are compiled for their bytes, but for the first."""

    def __init__(self, needed: dict[int, int]) -> None:
        self.needed, self.number, self.settled = needed, -1, False

    def measure(self, graph: Groups, order: Order) -> int:
        self.number += 1
        if self.settled:  # jax traces again, for reasons of its own
            return compiled_bytes(graph, order)
        if self.number in self.needed:
            return self.needed[self.number]
        return compiled_bytes(graph, order) if self.number else 0


def compiled(function: Callable, bytes: int | None = None) -> Callable:
    """The function as one program, which each form of its arguments compiles once.

    Arrays are traced; what else there is among the arguments is part of the form. With `bytes` the
    function makes one plan for so many, and its program is held against them.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(form: _Form, attempt: Attempt | None, arrays: list) -> Any:
        args, kwargs = form.filled(arrays)
        with measured_by(attempt.measure if attempt else None):
            return function(*args, **kwargs)

    settled: dict[tuple, Attempt | None] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        form, arrays = _formed(args, kwargs)
        attempt = None
        if bytes is not None and not any(isinstance(x, Tracer) for x in arrays):
            key = (form, *((jax.typeof(x), getattr(x, "sharding", None)) for x in arrays))
            if key not in settled:
                settled[key] = _fitting(functools.partial(run.trace, form), arrays, bytes)
            attempt = settled[key]
        return run(form, attempt, arrays)

    return call


def _fitting(trace: Callable, arrays: list, bytes: int) -> Attempt | None:
    """The attempt whose program needs at most so many bytes; jax keeps that program for the call.
    None inside of a transformation that the arrays do not show."""
    needed: dict[int, int] = {}
    while True:
        attempt = Attempt(needed)
        traced = trace(attempt, arrays)
        if any(isinstance(const, Tracer) for const in traced.jaxpr.consts):
            return None
        program = traced.lower().compile()
        found = cast(Any, program.memory_analysis()).temp_size_in_bytes
        if found <= bytes:
            attempt.settled = True
            return attempt
        needed[attempt.number] = found


def _formed(args: tuple, kwargs: dict) -> tuple["_Form", list]:
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = tuple(i for i, leaf in enumerate(leaves) if _is_array(leaf))
    rest = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    return _Form(tree, places, rest), [leaves[i] for i in places]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, complex))


class _Form:
    """What a call has beside its arrays; two are equal where all of that is."""

    def __init__(self, tree: Any, places: tuple[int, ...], rest: tuple[Hashable, ...]) -> None:
        self.tree, self.places, self.rest = tree, places, rest

    def filled(self, arrays: Sequence[Any]) -> Any:
        leaves: list[Any] = list(self.rest)
        for place, array in zip(self.places, arrays, strict=True):
            leaves[place] = array
        return jax.tree.unflatten(self.tree, leaves)

    def _key(self) -> tuple:
        return self.tree, self.places, self.rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Form) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
