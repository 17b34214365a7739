"""The plan: an order that fits, held against the program that it compiles to."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxbackprop.graph.budget.emission import Evaluation
from jaxbackprop.graph.budget.groups import Groups, form, made_early
from jaxbackprop.graph.budget.joint import Joint, Operation
from jaxbackprop.graph.budget.kinds import COLLECTIVE, ON_A_MESH
from jaxbackprop.graph.budget.loops import choices_of
from jaxbackprop.graph.budget.simulation import ROOMS, NoRoom, Order, best, least, plain
from jaxbackprop.graph.lines import where

TRIES = 5
NEARLY = 1.2  # a program that keeps everything is compiled where it may fit
NEAR_LEAST = (1.1, 1.2)  # rooms in which an order may compile to less than the least predicted
PATHS = 24  # choices for the loops that are tried
TRIED: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0"
}  # not run: only its bytes are read
MIB = 2**20


Measure = Callable[[Groups, Order], int]  # the bytes that an order's program needs


class Planned(NamedTuple):
    """A graph in an order, and the temporary bytes of the program that it compiles to."""

    graph: Groups
    order: Order
    compiled: int


def between_devices(joint: Joint) -> bool:
    """Is it part of a program for several devices, inside shard_map?"""
    return any(o.name in COLLECTIVE | ON_A_MESH for o in joint.operations)


def evaluate(graph: Groups, order: Order, inputs: Sequence[Any]) -> list:
    """The outputs of the joint graph, evaluated in an order, by one device alone."""
    evaluation = Evaluation(graph, order, graph.joint.inputs, inputs)
    evaluation.alone = between_devices(graph.joint)
    evaluation.run(order.steps)
    return [evaluation.read(v) for v in graph.joint.outputs]


def compiled_bytes(graph: Groups, order: Order) -> int:
    """Temporary bytes of the order's program. A scalar's cotangent is 1 in it, as in a gradient;
    what the function closes over is a number of its text."""
    joint = graph.joint
    alone = between_devices(joint)
    given = {} if alone else dict(joint.known)
    given |= {
        v: np.ones((), joint.avals[v].dtype)
        for v in joint.inputs
        if v in joint.late and joint.avals[v].shape == ()
    }
    rest = [v for v in joint.inputs if v not in given]
    types = [jax.ShapeDtypeStruct(joint.avals[v].shape, joint.avals[v].dtype) for v in rest]

    def run(*arguments: Any) -> list:
        values = {**given, **dict(zip(rest, arguments, strict=True))}
        return evaluate(graph, order, [values[v] for v in joint.inputs])

    nowhere = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    with nowhere if alone else contextlib.nullcontext():
        lowered = jax.jit(run).lower(*types)
        text = f"{jax.default_backend()} {TRIED} {lowered.as_text()}"
        key = hashlib.sha256(text.encode()).digest()
        if key not in _READ:
            program = lowered.compile(compiler_options=TRIED)
            _READ[key] = cast(Any, program.memory_analysis()).temp_size_in_bytes
    return _READ[key]


_READ: dict[bytes, int] = {}  # by the text of a program: it is not compiled a second time


def plan(joint: Joint, bytes: int, measure: Measure = compiled_bytes) -> Planned:
    """The cheapest plan found whose program needs at most so many bytes, as it is measured.

    Raises ValueError where there is none, and names the least and the operation that sets it.
    """
    graphs = graphs_of(joint)
    free = plain(graphs[0])._replace(held=False)
    if free.peak + made_early(graphs[0]) / 2 <= NEARLY * bytes:
        compiled = measure(graphs[0], free)
        if compiled <= bytes:
            return Planned(graphs[0], free, compiled)
    room = bytes
    for _ in range(TRIES):
        found = cheapest(graphs, int(room))
        if found is None:
            break
        graph, order = found
        compiled = measure(graph, order)
        if compiled <= bytes:
            return Planned(graph, order, compiled)
        room = min(room, order.peak) * min(bytes / compiled, 0.98)
    smallest, operation = least_orders(graphs)
    needed = []
    for graph, order in smallest:
        needed.append(measure(graph, order))
        if needed[-1] <= bytes:
            return Planned(graph, order, needed[-1])
    raise ValueError(
        f"no plan fits {shown(bytes)}: the least that one needs is {shown(min(needed))}, for "
        f"{described(operation)}"
    )


def graphs_of(joint: Joint) -> list[Groups]:
    """The graph with less and less memory for its loops."""
    return [form(joint, choices) for choices in choices_of(joint, PATHS)]


def cheapest(graphs: Sequence[Groups], room: int) -> tuple[Groups, Order] | None:
    """Of graphs whose loops need less and less memory: the first that fits, and the next two, which
    leave more room to what is around the loops, are compared."""
    fitting = []
    for graph in graphs:
        try:
            fitting.append((graph, best(graph, room)))
        except NoRoom:
            continue
        if len(fitting) == 3:
            break
    return min(fitting, key=lambda pair: pair[1].cost, default=None)


def least_orders(graphs: Sequence[Groups]) -> tuple[list[tuple[Groups, Order]], Operation | None]:
    """Orders that are predicted to need least, one of which compiles to least; and the operation
    that needs it, where there is one: a constant has none."""
    tried = [(*least(graph, ROOMS), graph) for graph in graphs[-2:]]
    order, group, graph = min(tried, key=lambda found: found[0].peak)
    found = {order.steps: order}
    for more in NEAR_LEAST:
        near = best(graph, int(more * order.peak))
        found.setdefault(near.steps, near)
    last = graph.groups[group].operations[-1] if graph.groups else None
    operation = None if last is None else graph.joint.operations[last]
    return [(graph, order) for order in found.values()], operation


def least_plan(graphs: Sequence[Groups]) -> tuple[Planned, Operation | None]:
    """The plan in the least memory, and the operation that needs it."""
    orders, operation = least_orders(graphs)
    plans = [Planned(graph, order, compiled_bytes(graph, order)) for graph, order in orders]
    return min(plans, key=lambda planned: planned.compiled), operation


def described(operation: Operation | None) -> str:
    """'exp' of float32[8,32000] (model.py:12)."""
    if operation is None:
        return "a function without operations"
    result = operation.equation.outvars[0].aval
    return f"'{operation.name}' to {result.dtype}{list(result.shape)} ({where(operation.lines)})"


def shown(bytes: int) -> str:
    return f"{bytes} bytes ({bytes / MIB:.2f} MiB)"
