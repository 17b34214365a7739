"""What can be asked before anything runs: a plan, the least, what is kept, the frontier.

Only shapes are looked at: the arguments may be arrays or `jax.ShapeDtypeStruct`s.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxbackprop.graph.arguments import check_pair, check_scalar, only_arrays
from jaxbackprop.graph.budget.groups import Groups, form
from jaxbackprop.graph.budget.joint import Joint, like, trace
from jaxbackprop.graph.budget.planning import (
    MIB,
    cheapest,
    compiled_bytes,
    described,
    graphs_of,
    least_plan,
    plan,
)
from jaxbackprop.graph.budget.report import Row, printed, table
from jaxbackprop.graph.budget.simulation import Order, least, plain, predicted
from jaxbackprop.graph.mutable import make_jaxpr


class FunctionPlan(NamedTuple):
    """How the gradient of a function is computed in a number of bytes.

    `bytes`: predicted; `compiled_bytes`: what its program needs for this backend; `factor`: the
    estimated time over that of keeping everything; `rows`: what is kept and computed again by line.
    """

    asked: int
    bytes: int
    compiled_bytes: int
    factor: float
    rows: list[Row]

    def __str__(self) -> str:
        head = (
            f"asked {self.asked / MIB:.2f} MiB, predicted {self.bytes / MIB:.2f}, compiled "
            f"{self.compiled_bytes / MIB:.2f} for {jax.default_backend()}; "
            f"time × {self.factor:.2f} (estimated)"
        )
        return "\n".join([head, *printed(self.rows)])


class Least(NamedTuple):
    """The fewest bytes that a plan of a function compiles to, and the operation that sets them."""

    bytes: int
    operation: str

    def __str__(self) -> str:
        return f"{self.bytes / MIB:.2f} MiB, for {self.operation}"


class Kept(NamedTuple):
    """What an ordinary backward pass keeps, by line, and the bytes of its program."""

    bytes: int
    compiled_bytes: int
    rows: list[Row]

    def __str__(self) -> str:
        head = (
            f"{sum(row.kept for row in self.rows) / MIB:.2f} MiB are kept for the way back; the "
            f"walk's program needs {self.compiled_bytes / MIB:.2f}"
        )
        return "\n".join([head, *printed(self.rows)])


def graph_of(f: Callable, args: tuple, has_aux: bool = False, as_it_is: bool = False) -> Joint:
    """The joint graph of a scalar function, differentiated by its first argument."""
    leaves, tree = jax.tree.flatten(args[0])

    def of_leaves(leaves, rest):
        out = f(jax.tree.unflatten(tree, leaves), *rest)
        if has_aux:
            check_pair(out)
        value = only_arrays(out[0] if has_aux else out)
        check_scalar(value)
        return value

    arrays, fill = arrays_in(args[1:])
    closed = make_jaxpr(lambda leaves, arrays: of_leaves(leaves, fill(arrays)))(
        [like(x) for x in leaves], arrays
    )
    inputs = closed.jaxpr.invars
    types = [v.aval for v in inputs]
    active = [i < len(leaves) for i in range(len(inputs))]
    return trace(closed.jaxpr, closed.consts, types, [True], as_it_is, active)[0]


def arrays_in(args: tuple) -> tuple[list, Callable]:
    """The arrays among arguments, and what puts them back."""
    leaves, tree = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def fill(arrays):
        full = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            full[i] = array
        return jax.tree.unflatten(tree, full)

    return [like(leaves[i]) for i in places], fill


def plan_of(f: Callable, args: tuple, bytes: int, has_aux: bool = False) -> FunctionPlan:
    joint = graph_of(f, args, has_aux)
    found = plan(joint, bytes)
    whole = plain(graphs_of(joint)[0]).cost
    return FunctionPlan(
        bytes,
        predicted(found.graph, found.order),
        found.compiled,
        _times(found.order.cost, whole),
        table(found.graph, found.order, whole),
    )


def least_of(f: Callable, args: tuple, has_aux: bool = False) -> Least:
    found, operation = least_plan(graphs_of(graph_of(f, args, has_aux)))
    return Least(found.compiled, described(operation))


def kept_of(f: Callable, args: tuple, has_aux: bool = False) -> Kept:
    """A user's own checkpoints are what they are; a scan's residuals have the scan's line."""
    graph = form(graph_of(f, args, has_aux, as_it_is=True))
    order = plain(graph)._replace(held=False)
    return Kept(order.peak, compiled_bytes(graph, order), table(graph, order, order.cost))


class Point(NamedTuple):
    """A plan: predicted bytes, and estimated time over that of keeping everything."""

    bytes: int
    factor: float
    graph: Groups
    order: Order


def frontier_of(f: Callable, args: tuple, points: int = 12, has_aux: bool = False) -> list[Point]:
    """Plans from the least to all, that need fewer bytes the longer they take."""
    graphs = graphs_of(graph_of(f, args, has_aux))
    whole = plain(graphs[0])
    low = min(least(graph)[0].peak for graph in graphs[-2:])
    found = []
    for room in np.geomspace(max(low, 1), max(whole.peak, 1), points):
        pair = cheapest(graphs, int(room) + 1)
        if pair is not None:
            graph, order = pair
            found.append(Point(order.peak, _times(order.cost, whole.cost), graph, order))
    return found


def _times(cost: float, whole: float) -> float:
    """A time over that of keeping everything, which is none where there are no operations."""
    return cost / whole if whole else 1.0
