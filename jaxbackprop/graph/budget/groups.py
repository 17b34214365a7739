"""Groups: what is materialised, and what is computed on the way to it.

A compiler fuses: broadcasts, casts and elementwise values with one reader never become arrays in
memory. A group is an operation whose results are arrays, with the virtual values that are read on
the way to them. Its cost is an estimate in nanoseconds of a small CPU; plans depend on ratios only.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph.budget.joint import Joint, Operation
from jaxbackprop.graph.budget.kinds import (
    CHEAP,
    COLLECTIVE,
    FUSING,
    LOOP,
    REDUCTIONS,
    SORTING,
    STRETCHED,
    TRANSCENDENTAL,
    VIEWS,
)
from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.partition import acts
from jaxbackprop.graph.structure import CALLS

SLACK = 1.1  # a few numbers beside an array are as good as none
LARGE = 4096  # elements: what is smaller is left as it is
FLOPS, BYTES, SLOW = 60.0, 6.0, 1.0  # a nanosecond: 60 FLOP, 6 bytes, one transcendental


Choices = dict[Any, Any]  # for each loop of a graph, its option


class Group(NamedTuple):
    """The operations that make `writes` from `reads`, in order.

    `in_place`: may it write over an operand that ends? `apart`: is its result held in memory, where
    a compiler would compute it again in each reader? `spread`: those of its operations whose small
    operands are stretched to what a library's sum reads. `copied`: the places of operands
    that a library lays out anew. `once`: it is not repeated.
    """

    operations: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    cost: float
    workspace: int
    in_place: bool
    apart: bool
    spread: frozenset[int]
    copied: frozenset[int]
    once: bool


class Groups(NamedTuple):
    """A joint graph in groups, in its own order. `bytes`: 0 for arguments and results; `cheap`: the
    operations that a compiler would rather compute again in each reader than keep."""

    joint: Joint
    groups: list[Group]
    bytes: list[int]
    producer: dict[int, int]
    choices: Choices
    cheap: frozenset[int]


def size(aval: Any) -> int:
    """Bytes of a value of this type."""
    if not hasattr(aval, "shape"):
        return 0
    dtype = aval.dtype
    each = dtype.itemsize if isinstance(dtype, np.dtype) else 8
    return math.prod(aval.shape) * max(each, 1)


def form(joint: Joint, choices: Choices | None = None) -> Groups:
    """The groups of a graph, with an option chosen for each loop in it."""
    choices = choices or {}
    operations, avals = joint.operations, joint.avals
    readers: dict[int, list[int]] = {}
    maker: dict[int, int] = {}
    for i, operation in enumerate(operations):
        for v in operation.values:
            readers.setdefault(v, []).append(i)
        maker.update(dict.fromkeys(operation.writes, i))
    results = {v for v in joint.outputs if not isinstance(v, Literal)}
    inputs = set(joint.inputs)
    free = inputs | results
    bytes = [0 if v in free else size(a) for v, a in enumerate(avals)]
    for v, i in maker.items():
        if v not in free:
            bytes[v] = bytes_of(avals, v, choices, operations[i])
    cheap = frozenset(i for i, o in enumerate(operations) if _is_cheap(o, avals, operations, maker))
    virtual, light = _virtual(operations, readers, results, bytes, cheap)
    groups, producer = [], {}
    for i, operation in enumerate(operations):
        if operation.writes and all(v in virtual for v in operation.writes):
            continue
        copied = frozenset(
            p for p in relaid(operation) if _made_before(operation, p, joint.late, readers, inputs)
        )
        through = virtual | (light if copied else set())
        members, reads = _way(i, operations, maker, through, light, inputs)
        within = [operations[m] for m in members]
        apart = (
            i in cheap
            and len(readers.get(operation.writes[0], ())) > 1
            and sum(bytes[v] for v in reads) > SLACK * bytes[operation.writes[0]]
        )
        producer.update(dict.fromkeys(operation.writes, len(groups)))
        groups.append(
            Group(
                tuple(members),
                tuple(reads),
                operation.writes,
                sum(cost(o, avals, choices) for o in within),
                workspace(operation, avals, choices)
                + sum(
                    size(avals[operation.reads[p]]) for p in copied | _shared(operation, readers)
                ),
                is_loop(operation.equation) and not apart,
                apart,
                _spread(members, operations, avals),
                copied,
                any(once(o) for o in within),
            )
        )
    return Groups(joint, groups, bytes, producer, choices, cheap)


def _is_cheap(operation: Operation, avals: list[Any], operations: list[Operation], maker) -> bool:
    """A quotient by few numbers is a product with their inverses."""
    if operation.name != "div":
        return _is_all(operation.equation, CHEAP) and operation.name not in STRETCHED | VIEWS
    divisor = operation.reads[1]
    if isinstance(divisor, Literal) or _elements(avals[divisor]) < _elements(
        avals[operation.writes[0]]
    ):
        return True
    return divisor in maker and operations[maker[divisor]].name in STRETCHED


def is_loop(equation: Any) -> bool:
    """Is it elementwise or a movement? So is a function with a rule of its own, if all in it is."""
    return _is_all(equation, LOOP)


def _is_all(equation: Any, names: frozenset[str]) -> bool:
    """Is it one of these, or no array of its own, or a function of such?"""
    name = equation.primitive.name
    inner = equation.params.get("call_jaxpr") if name == "custom_jvp_call" else None
    if name in CALLS:
        inner = equation.params[CALLS[name]]
    if inner is not None:
        return all(_is_all(e, names) for e in open_jaxpr(inner)[0].eqns)
    return name in names | STRETCHED | VIEWS


def _virtual(operations, readers, results, bytes, cheap) -> tuple[set[int], set[int]]:
    """The values that are no arrays in memory; and those that are, but not for what would rather
    compute them again from something that may as well be kept."""
    behind: dict[int, frozenset[int]] = {}  # what is read in place of such a value
    virtual, light = set(), set()
    for i, operation in enumerate(operations):
        for v in set(operation.writes) - results:
            reads = frozenset().union(*(behind.get(u, {u}) for u in operation.values))
            after = [operations[r] for r in readers.get(v, ())]
            as_well = i in cheap and sum(bytes[u] for u in reads) <= SLACK * bytes[v]
            if _is_virtual(operation, after, as_well):
                virtual.add(v)
            elif as_well:
                light.add(v)
            if v in virtual or v in light:
                behind[v] = reads
    return virtual, light


def _is_virtual(operation: Operation, readers: list[Operation], as_well: bool) -> bool:
    """`as_well`: is it cheap, and may what it is made from as well be kept?"""
    name = operation.name
    if name in VIEWS:
        return True
    if not is_loop(operation.equation) or not all(map(_fuses, readers)):
        return False
    if name in STRETCHED or name == "convert_element_type":
        return True
    return len({id(r) for r in readers}) == 1 or as_well


def _fuses(operation: Operation) -> bool:
    """Does it read what is virtual?"""
    return operation.name in FUSING or is_loop(operation.equation)


def _way(root, operations, maker, through, light, inputs) -> tuple[list[int], list[int]]:
    """The operations from what is materialised to the root, and what they read of that."""
    members, reads, waiting = set(), {}, [root]
    while waiting:
        i = waiting.pop()
        if i in members:
            continue
        members.add(i)
        for v in operations[i].values:
            if v in through or (v in light and _fuses(operations[i])):
                waiting.append(maker[v])
            elif v not in inputs:
                reads[v] = None
    return sorted(members), list(reads)


def _made_before(operation: Operation, place: int, late, readers, inputs) -> bool:
    """Is an operand of the way back there long before, for others as well?"""
    v = operation.reads[place]
    if isinstance(v, Literal) or operation.writes[0] not in late:
        return False
    return v not in late and (v in inputs or len(readers.get(v, ())) > 1)


def _shared(operation: Operation, readers: dict[int, list[int]]) -> set[int]:
    """The places of operands that others want as they are, and a library in another way."""
    reads = operation.reads
    return {
        p
        for p in relaid(operation)
        if not isinstance(reads[p], Literal) and len(readers.get(reads[p], ())) > 1
    }


def made_early(graph: Groups) -> int:
    """Bytes of what a program that is not held to its order makes as soon as it can: operands that
    are laid out anew, and stretched ones."""
    operations, avals = graph.joint.operations, graph.joint.avals
    found = {operations[g.operations[-1]].reads[p] for g in graph.groups for p in g.copied}
    stretched = {
        (v, avals[operations[m].writes[0]])
        for g in graph.groups
        for m in g.spread
        for v in operations[m].values
        if v not in graph.joint.late
        and _elements(avals[v]) < _elements(avals[operations[m].writes[0]])
    }
    return sum(size(avals[v]) for v in found) + sum(size(aval) for _, aval in stretched)


def _spread(members, operations, avals) -> frozenset[int]:
    """The operations that stretch an operand, in a group that is a library's sum."""
    if operations[members[-1]].name not in REDUCTIONS:
        return frozenset()
    return frozenset(m for m in members if _stretches(operations[m], avals))


def _stretches(operation: Operation, avals: list[Any]) -> bool:
    if operation.name not in STRETCHED | CHEAP | TRANSCENDENTAL:
        return False
    out = _elements(avals[operation.writes[0]])
    return out >= LARGE and any(_elements(v.aval) < out for v in operation.equation.invars)


def _elements(aval: Any) -> int:
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
    out = max((_elements(avals[v]) for v in operation.writes), default=0)
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


def relaid(operation: Operation) -> set[int]:
    """The places of an operand that its library wants laid out in another way: of a product batch,
    rows and columns in order, or the last two swapped; of a convolution features last."""
    params = operation.equation.params
    if operation.name == "conv_general_dilated":
        (batch, features, *space), (out, of, *window), _ = params["dimension_numbers"]
        wanted = [(batch, *space, features), (*window, of, out)]
        return {i for i, order in enumerate(wanted) if order != tuple(range(len(order)))}
    if operation.name != "dot_general":
        return set()
    found = set()
    for place, (contract, batch) in enumerate(zip(*params["dimension_numbers"], strict=True)):
        rank = operation.equation.invars[place].aval.ndim
        free = [d for d in range(rank) if d not in (*contract, *batch)]
        order = (*batch, *free, *contract) if place == 0 else (*batch, *contract, *free)
        matrices = len(contract) == len(free) == 1 and tuple(batch) == tuple(range(len(batch)))
        if order != tuple(range(rank)) and not matrices:
            found.add(place)
    return found


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
