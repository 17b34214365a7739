"""Groups: what is materialised, and what is computed on the way to it.

A compiler fuses: broadcasts, casts and elementwise values with one reader never become arrays in
memory. A group is an operation whose results are arrays, with the virtual values that are read on
the way to them.
"""

from typing import NamedTuple

from jax.extend.core import Literal

from jaxbackprop.graph.budget.costs import Choices, bytes_of, cost, elements, once, size, workspace
from jaxbackprop.graph.budget.fusion import (
    SLACK,
    is_cheap,
    is_loop,
    is_unary,
    made_before,
    relaid,
    shared,
    spread,
    turned,
    virtual_values,
    way,
)
from jaxbackprop.graph.budget.joint import Joint


class Group(NamedTuple):
    """The operations that make `writes` from `reads`, in order.

    `in_place`: may it write over an operand that ends, but for those that it reads `turned`?
    `apart`: is its result held in memory, where a compiler would compute it again in each reader?
    `spread`: those of its operations whose small operands are stretched to what a library's sum
    reads. `copied`: the places of operands that a library lays out anew. `once`: it is not
    repeated.
    """

    operations: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    cost: float
    workspace: int
    in_place: bool
    turned: frozenset[int]
    apart: bool
    spread: frozenset[int]
    copied: frozenset[int]
    once: bool


class Groups(NamedTuple):
    """A joint graph in groups, in its own order. `bytes`: 0 for arguments and results; `cheap`: the
    operations that a compiler would rather compute again in each reader than keep; `seen_through`:
    those of them that it does so for readers that are far apart."""

    joint: Joint
    groups: list[Group]
    bytes: list[int]
    producer: dict[int, int]
    choices: Choices
    cheap: frozenset[int]
    seen_through: frozenset[int]


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
    cheap = frozenset(i for i, o in enumerate(operations) if is_cheap(o, avals, operations, maker))
    virtual, light = virtual_values(operations, readers, results, bytes, cheap)
    groups, producer = [], {}
    for i, operation in enumerate(operations):
        if operation.writes and all(v in virtual for v in operation.writes):
            continue
        copied = frozenset(
            p for p in relaid(operation) if made_before(operation, p, joint.late, readers, inputs)
        )
        through = virtual | (light if copied else set())
        members, reads = way(i, operations, maker, through, light, inputs)
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
                + sum(size(avals[operation.reads[p]]) for p in copied | shared(operation, readers)),
                is_loop(operation.equation),
                turned(members, operations, readers),
                apart,
                spread(members, operations, avals),
                copied,
                any(once(o) for o in within),
            )
        )
    seen = frozenset(i for i in cheap if is_unary(operations[i], avals, operations, maker))
    return Groups(joint, groups, bytes, producer, choices, cheap, seen)


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
        and elements(avals[v]) < elements(avals[operations[m].writes[0]])
    }
    return sum(size(avals[v]) for v in found) + sum(size(aval) for _, aval in stretched)
