"""What an operation costs, in time and in bytes.

The time is an estimate in nanoseconds of a small CPU; plans depend on ratios only.
"""

import math
from typing import Any

import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph.budget.joint import Operation
from jaxbackprop.graph.budget.kinds import COLLECTIVE, SORTING, STRETCHED, TRANSCENDENTAL, VIEWS
from jaxbackprop.graph.partition import acts

FLOPS, BYTES, SLOW = 60.0, 6.0, 1.0  # a nanosecond: 60 FLOP, 6 bytes, one transcendental


Choices = dict[Any, Any]  # for each loop of a graph, its option


def size(aval: Any) -> int:
    """Bytes of a value of this type."""
    if not hasattr(aval, "shape"):
        return 0
    dtype = aval.dtype
    each = dtype.itemsize if isinstance(dtype, np.dtype) else 8
    return math.prod(aval.shape) * max(each, 1)


def elements(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def bytes_of(avals: list[Any], v: int, choices: Choices, operation: Operation | None) -> int:
    """Bytes of a value; what a loop keeps for its way back is the last of its results."""
    if operation is not None and operation.name == "scan_ahead" and v == operation.writes[-1]:
        return choices[operation.equation.params["loop"]].kept
    return size(avals[v])


def once(operation: Operation) -> bool:
    """Is it to be done one time only: an effect, or something between devices?"""
    return acts(operation.equation) or operation.name in COLLECTIVE


def cost(operation: Operation, avals: list[Any], choices: Choices) -> float:
    """Estimated nanoseconds: FLOPs of products, bytes of the rest."""
    name, params = operation.name, operation.equation.params
    if "loop" in params:
        option = choices[params["loop"]]
        return option.cost_ahead if name == "scan_ahead" else option.cost_back
    out = max((elements(avals[v]) for v in operation.writes), default=0)
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        shape = operation.equation.invars[0].aval.shape
        return 2 * out * math.prod(shape[d] for d in contracted) / FLOPS
    if name == "conv_general_dilated":
        kernel = operation.equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * out * math.prod(kernel) / max(features, 1) / FLOPS
    inner = inner_graphs(params)
    if inner:
        times = params.get("length", 1)
        return times * max(sum(_own_cost(e) for e in graph.eqns) for graph in inner)
    moved = sum(size(avals[v]) for v in operation.writes)
    moved += sum(size(v.aval) for v in operation.equation.invars)
    if name in VIEWS or name in STRETCHED:
        return 0.0
    factor = 8 if name in SORTING else 1
    return factor * moved / BYTES + (SLOW * out if name in TRANSCENDENTAL else 0)


def _own_cost(equation: Any) -> float:
    writes = tuple(range(len(equation.outvars)))
    return cost(Operation(equation, (), writes), [v.aval for v in equation.outvars], {})


def inner_graphs(params: dict) -> list[Any]:
    """The graphs among an equation's parameters."""
    found = []
    for value in params.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            graph = getattr(entry, "jaxpr", entry)
            if hasattr(graph, "eqns"):
                found.append(graph)
    return found


def workspace(operation: Operation, avals: list[Any], choices: Choices) -> int:
    """Bytes that it needs beside operands and results: of an inner graph, its own peak."""
    if "loop" in operation.equation.params:
        option = choices[operation.equation.params["loop"]]
        return option.work_ahead if operation.name == "scan_ahead" else option.work
    if operation.name in ("random_bits", "threefry2x32"):  # a loop over two states of that size
        return 3 * sum(size(avals[v]) for v in operation.writes)
    graphs = inner_graphs(operation.equation.params)
    return max((_inner_peak(graph) for graph in graphs), default=0)


def _inner_peak(jaxpr: Any) -> int:
    """The most that is alive at a time in an inner graph, its inputs apart."""
    last = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if not isinstance(v, Literal)}
    alive, peak, held = 0, 0, {}
    for i, e in enumerate(jaxpr.eqns):
        virtual = e.primitive.name in VIEWS | STRETCHED
        for v in e.outvars:
            held[v] = 0 if virtual else size(v.aval)
            alive += held[v]
        inner = max((_inner_peak(g) for g in inner_graphs(e.params)), default=0)
        peak = max(peak, alive + inner)
        for v in e.invars:
            if not isinstance(v, Literal) and last.get(v) == i and v in held:
                alive -= held.pop(v)
    return peak
