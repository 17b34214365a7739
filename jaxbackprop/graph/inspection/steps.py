"""What a function's graph is once it is laid out: values, the steps that make them, their place."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbackprop.graph.walk import Node, Tape


@dataclasses.dataclass(eq=False)
class Value:
    """An array that the function computed. `active`: it depends on a differentiated input.

    A `tangent` is a variable of a rule that is linear in it: it has a gradient, but no value.
    `source` is the value that this one is a copy of, without its gradient.
    """

    array: Any
    active: bool = False
    tangent: bool = False
    source: "Value | None" = None


def origin_of(v: Value) -> Value:
    """The value that this one is a copy of."""
    return v if v.source is None else origin_of(v.source)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """In place of a gradient that comes through an operation without a rule. Absorbs any sum."""

    operation: str
    line: str
    reason: str
    # To the walk's sums it is an array, of which nothing is known; NumPy leaves it alone.
    dtype = np.dtype(np.float32)
    __array_ufunc__ = None

    def astype(self, dtype: Any) -> "Unknown":
        return self

    def __add__(self, other: Any) -> "Unknown":
        return self

    __radd__ = __add__

    def __repr__(self) -> str:
        return f"unknown behind {self.operation} at {self.line}: {self.reason}"


class Place(NamedTuple):
    """Where an operation stands: in which equations, from the outside in, and which scan steps."""

    equations: tuple = ()
    steps: tuple[int, ...] = ()
    hidden: bool = False  # the slicing and stacking that a scan does is not the user's

    def at(self, equation: Any) -> "Place":
        return self._replace(equations=(*self.equations, equation))


AT_THE_TOP = Place()


def _no_way_back(cts: list) -> list:
    raise ValueError("no gradient came to this operation")


@dataclasses.dataclass(eq=False)
class Step:
    """One operation: `invars` and `outvars` are the walk's names for its values.

    The walk leaves the cotangents of its outputs and its contributions to those of its inputs.
    `operands` are what a reader would call its inputs. `inside` are the outputs once more, as the
    steps of its own body made them, where it has a rule besides. `back` is its way back, to be
    tried once more.
    """

    place: Place
    invars: list[Value]
    outvars: list[Value]
    operands: list[Value]
    cts: Sequence = ()
    contributions: Sequence = ()
    inside: Sequence[Value] = ()
    back: Callable = _no_way_back

    @property
    def equation(self) -> Any:
        return self.place.equations[-1]

    @property
    def ctx(self) -> Any:
        """What it was written under, as the walk asks an equation."""
        return self.equation.ctx


class Log(NamedTuple):
    """All steps in order, and the nodes of those that the walk goes back through.

    `without_values`: the arrays are tracers, and what is to be laid out on values cannot be.
    """

    steps: list[Step]
    nodes: list[Node]
    without_values: bool = False


class HasNoTemplate(Exception):
    """What was to be laid out without values needs them."""


@contextlib.contextmanager
def without_alarms() -> Iterator[None]:
    """NaN is what is looked for: jax's own alarms would stop at the first one, without a line."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


class Ends(NamedTuple):
    """What the walk asks of a jaxpr."""

    invars: list[Value]
    outvars: list[Value]


class Graph(NamedTuple):
    """A function's graph after the walk: what it was given, what it did, and the gradients.

    `constants` has the names of arrays that were given and not differentiated, by id.
    """

    steps: list[Step]
    tape: Tape
    names: tuple[str, ...]
    gradients: tuple
    constants: dict[int, str]
