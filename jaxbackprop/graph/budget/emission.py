"""Evaluation in a plan's order, so that what is computed again is indeed computed again.

A compiler merges equal computations, and keeps the first. So where an operation runs on the very
operands that it has run on before, one of them is *tied* to the latest value: on a CPU by a number
that is always 0, elsewhere by an optimization barrier.
"""

import collections
import copy
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxbackprop.checkpoint.ties import array_of_its_own, tie
from jaxbackprop.graph.budget.costs import size
from jaxbackprop.graph.budget.fusion import LARGE
from jaxbackprop.graph.budget.groups import Group, Groups
from jaxbackprop.graph.budget.joint import Operation
from jaxbackprop.graph.budget.kinds import COLLECTIVE, ON_A_MESH, SHALLOW, STRETCHED, VIEWS
from jaxbackprop.graph.budget.memory import ends, outliving
from jaxbackprop.graph.budget.simulation import Order
from jaxbackprop.graph.walk import evaluate, from_line

FREE = -1  # the time of what was not tied
RECENT = 4  # values that a tie can be made to


class Evaluation:
    """The values of a joint graph, as far as they have been evaluated.

    `loose`: what depends on the inputs alone, and could be made at any time. `bound`: when a value
    was made of operands that were tied.
    """

    def __init__(
        self, graph: Groups, order: Order, variables: Sequence[int], inputs: Sequence[Any]
    ) -> None:
        self.graph = graph
        self.held = order.held
        self.outliving = outliving(graph, order.steps) if order.held else set()
        self.ends = ends(graph, order.steps) if order.held else {}
        self.made: dict[int, int] = {}
        self.values: dict[int, Any] = {}
        self.version: dict[int, int] = {}
        self.ran: set[tuple] = set()
        self.readers = collections.Counter(v for group in graph.groups for v in group.reads)
        self.loose = set(graph.joint.inputs)
        self.arguments = set(graph.joint.inputs)
        self.latest: Any = None
        self.recent: list[tuple[int, Any]] = []
        self.count = 0
        self.burst = 0
        self.alone = False
        self.steps_ran: set[int] = set()
        self.again = False
        self.bound: dict[int, int] = {}
        self.time = 0
        self.given(variables, inputs)

    def copy(self) -> "Evaluation":
        """As far as this one is: what is evaluated in one of the two does not show in the other."""
        other = copy.copy(self)
        other.values, other.version = dict(self.values), dict(self.version)
        other.ran, other.loose = set(self.ran), set(self.loose)
        other.bound, other.made = dict(self.bound), dict(self.made)
        other.steps_ran = set(self.steps_ran)
        return other

    def given(self, variables: Sequence[int], values: Sequence[Any]) -> None:
        for v, value in zip(variables, values, strict=True):
            self.values[v] = value
            self.version[v] = 0

    def run(self, steps: Sequence[int]) -> None:
        for step in steps:
            group = self.graph.groups[step]
            self.time += 1
            self.again = step in self.steps_ran
            if not self.again:
                self.burst = self.count
            self.steps_ran.add(step)
            self.latest = self.latest_for(group)
            before = {v: self.values[v] for v in group.reads}
            self.values.update(self.in_turn(group))
            for index in group.operations:
                self.operate(index, group)
            self.values.update(before)
            self.made.update(dict.fromkeys(group.writes, self.time - 1))
            if group.apart and self.time - 1 in self.outliving:
                for v in group.writes:
                    self.values[v] = array_of_its_own(self.values[v])
            self.remember(group.writes)

    def remember(self, writes: Sequence[int]) -> None:
        """The latest values that a tie can be made to."""
        found = [v for v in writes if v not in self.loose and _can_hold(self.values[v])]
        self.recent = [*self.recent, *((v, self.values[v]) for v in found)][-RECENT:]

    def latest_for(self, group: Group) -> Any:
        """The latest value, other than what the group reads: with one more reader that would no
        longer be fused with the group."""
        others = [value for v, value in self.recent if v not in group.reads]
        return (others or [value for _, value in self.recent] or [None])[-1]

    def operate(self, index: int, group: Group) -> None:
        operation, spread = self.graph.joint.operations[index], index in group.spread
        versions = tuple(self.version.get(v, 0) for v in operation.values)
        key = (index, versions)
        inputs = [self.read(v) for v in operation.reads]
        old = max(versions, default=0) <= self.burst
        again = key in self.ran or (self.again and old)
        self.ran.add(key)
        loose = operation.name in SHALLOW and all(v in self.loose for v in operation.values)
        if loose:
            self.loose.update(operation.writes)
        root = index == group.operations[-1]
        if (
            again
            and (not spread or self.bound.get(operation.writes[0]) == self.time - 1)
            and self.is_the_same(operation, not root and index in self.graph.seen_through)
        ):
            return
        early = loose and operation.name not in VIEWS | STRETCHED and self.is_large(operation)
        tied = self.latest is not None and self.held and (spread or again or early)
        if tied:
            inputs = (self.spread if spread else self.tied)(operation, inputs)
        self.bound.update(dict.fromkeys(operation.writes, self.time if tied else FREE))
        if self.latest is not None and self.held and root:
            for place in group.copied:
                inputs[place] = tie(self.latest, inputs[place])
        outputs = self.evaluate(operation, inputs)
        self.count += 1
        self.values.update(zip(operation.writes, outputs, strict=True))
        self.version.update(dict.fromkeys(operation.writes, self.count))

    def in_turn(self, group: Group) -> dict[int, Any]:
        """What a group that may write over an operand reads once its earlier readers are done, such
        as a product for the gradient of weights, which XLA would put off; it is tied to them."""
        if not (self.held and group.in_place and self.latest is not None):
            return {}
        root = self.graph.joint.operations[group.operations[-1]].values
        read = [v for v in group.reads if self.is_array(v)]
        ending = [v for v in read if v in root and self.ends_now(v)]
        shared = [v for v in read if self.readers[v] > 1]
        return {v: array_of_its_own(self.values[v], self.latest) for v in (ending or shared)[:1]}

    def evaluate(self, operation: Operation, inputs: list) -> list:
        if self.alone:
            return self.stand_in(operation, inputs)
        if self.held and operation.name == "reduce_sum" and 1 in inputs[0].shape:
            return [_sum_of_matrix(operation.equation, inputs[0])]
        loop = operation.equation.params.get("loop")
        if loop is None:
            return evaluate(operation.equation, inputs)
        run = loop.ahead if operation.name == "scan_ahead" else loop.back
        with from_line(operation.equation):
            return run(self.graph.choices[loop], inputs)

    def stand_in(self, operation: Operation, inputs: list) -> list:
        """The operation on one device, to see how many bytes it needs: what is exchanged with
        others is as large as what they send."""
        equation = operation.equation
        if operation.name in COLLECTIVE | ON_A_MESH:
            types = [self.graph.joint.avals[v] for v in operation.writes]
            first = jnp.ravel(inputs[0])[0] if inputs else 0
            alike = len(inputs) == len(types) and all(
                x.shape == t.shape for x, t in zip(inputs, types, strict=True)
            )
            return inputs if alike else [jnp.full(t.shape, first, t.dtype) for t in types]
        params = equation.primitive.get_bind_params(equation.params)
        found = equation.primitive.bind(*inputs, **params)
        return list(found) if equation.primitive.multiple_results else [found]

    def read(self, v: Any) -> Any:
        return v.val if isinstance(v, Literal) else self.values[v]

    def is_the_same(self, operation: Operation, cheap: bool) -> bool:
        """No array of its own: it may as well be read where it was made first; if that was tied,
        not much later, because what it was tied to stays with it."""
        if any(FREE < self.bound.get(v, FREE) < self.time - 1 for v in operation.writes):
            return False
        of_arguments = all(v in self.arguments for v in operation.values)
        name = operation.name
        seen = name in VIEWS and (name != "transpose" or of_arguments)
        return cheap or seen or name in STRETCHED

    def ends_now(self, v: int) -> bool:
        """Is this the last reader of the value, as it is?"""
        return self.ends.get((v, self.made.get(v, -1))) == self.time - 1

    def is_array(self, v: int) -> bool:
        return hasattr(self.values[v], "dtype") and self.values[v].size >= LARGE

    def is_large(self, operation: Operation) -> bool:
        return sum(size(self.graph.joint.avals[v]) for v in operation.writes) >= LARGE

    def spread(self, operation: Operation, inputs: list) -> list:
        """The operands, those tied to the latest value that are stretched to the result's shape.

        Two that are stretched alike would be one array in memory, there from the first time that it
        could be made to the last that it is read. One for each reader is no array at all.
        """
        out = math.prod(self.graph.joint.avals[operation.writes[0]].shape)
        return [
            tie(self.latest, jnp.asarray(x)) if math.prod(v.aval.shape) < out else x
            for x, v in zip(inputs, operation.equation.invars, strict=True)
        ]

    def tied(self, operation: Operation, inputs: list) -> list:
        """The operands, the smallest of them tied to the latest value."""
        sizes = {
            place: size(self.graph.joint.avals[v])
            for place, v in enumerate(operation.reads)
            if not isinstance(v, Literal) and hasattr(inputs[place], "dtype")
        }
        if not sizes:
            return inputs
        place = min(sizes, key=sizes.__getitem__)
        held = tie(self.latest, inputs[place])
        same = [v is operation.reads[place] or v == operation.reads[place] for v in operation.reads]
        return [held if s else x for s, x in zip(same, inputs, strict=True)]


def _sum_of_matrix(equation: Any, array: Any) -> Any:
    """The sum, over an array without dimensions of one element.

    XLA on a CPU takes a sum of products for a matrix product, and where a dimension had one element
    it took up to a hundred times as long (jax 0.10): 19 ms for 0.5 in a softmax's backward pass. In
    a program that is not held, that sum is fused with the product before it.
    """
    long = [d for d, n in enumerate(array.shape) if n != 1]
    axes = tuple(i for i, d in enumerate(long) if d in equation.params["axes"])
    matrix = jnp.squeeze(array, tuple(d for d, n in enumerate(array.shape) if n == 1))
    params = {**equation.params, "axes": axes}
    with from_line(equation):
        return equation.primitive.bind(matrix, **params).reshape(equation.outvars[0].aval.shape)


def _can_hold(value: Any) -> bool:
    return (
        hasattr(value, "dtype")
        and jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
        and value.size > 0
    )
