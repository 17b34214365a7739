"""What a compiler fuses, and what it hands to a library.

What is cheap is computed again in each loop that reads it. A library's product, convolution or sum
reads arrays in memory: it may want an operand laid out anew, or stretched.
"""

from typing import Any

from jax.extend.core import Literal

from jaxbackprop.graph.budget.costs import elements
from jaxbackprop.graph.budget.joint import Operation
from jaxbackprop.graph.budget.kinds import (
    CHEAP,
    FUSING,
    LOOP,
    REDUCTIONS,
    STRETCHED,
    TRANSCENDENTAL,
    VIEWS,
)
from jaxbackprop.graph.dependence import CALLS, open_jaxpr

SLACK = 1.1  # a few numbers beside an array are as good as none
REPEATED = STRETCHED | {"tile"}
LARGE = 4096  # elements: what is smaller is left as it is


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


def is_cheap(operation: Operation, avals: list[Any], operations: list[Operation], maker) -> bool:
    """A quotient by few numbers is a product with their inverses."""
    if operation.name != "div":
        return _is_all(operation.equation, CHEAP) and operation.name not in STRETCHED | VIEWS
    divisor = operation.reads[1]
    if isinstance(divisor, Literal) or elements(avals[divisor]) < elements(
        avals[operation.writes[0]]
    ):
        return True
    return divisor in maker and operations[maker[divisor]].name in STRETCHED


def is_unary(operation: Operation, avals: list[Any], operations: list[Operation], maker) -> bool:
    """Does it read at most one array of its result's size? Then a loop that reads the result may as
    well read what it is made from; of two, a compiler makes one array for two far readers."""
    out = elements(avals[operation.writes[0]])
    return sum(_is_full(v, out, avals, operations, maker) for v in set(operation.values)) <= 1


def _is_full(v: int, out: int, avals: list[Any], operations: list[Operation], maker) -> bool:
    while v in maker and operations[maker[v]].name in VIEWS and operations[maker[v]].values:
        v = operations[maker[v]].values[0]
    return elements(avals[v]) >= out and not (v in maker and operations[maker[v]].name in STRETCHED)


def virtual_values(operations, readers, results, bytes, cheap) -> tuple[set[int], set[int]]:
    """The values that are no arrays in memory; and those that are, but not for what would rather
    compute them again from something that may as well be kept."""
    behind: dict[int, frozenset[int]] = {}  # what is read in place of such a value
    virtual, light = set(), set()
    for i, operation in enumerate(operations):
        for v in set(operation.writes) - results:
            reads = frozenset().union(*(behind.get(u, {u}) for u in operation.values))
            after = [operations[r] for r in readers.get(v, ())]
            little = sum(bytes[u] for u in reads) <= SLACK * bytes[v]
            if _is_virtual(operation, after, i in cheap and little):
                virtual.add(v)
            elif little and (i in cheap or operation.name in REPEATED):
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
    """Does it read what is virtual? A library's sum of everything reads an array."""
    if operation.name in REDUCTIONS and operation.equation.outvars[0].aval.shape == ():
        return False
    return operation.name in FUSING or is_loop(operation.equation)


def way(root, operations, maker, through, light, inputs) -> tuple[list[int], list[int]]:
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


def made_before(operation: Operation, place: int, late, readers, inputs) -> bool:
    """Is an operand of the way back there long before, for others as well?"""
    v = operation.reads[place]
    if isinstance(v, Literal) or operation.writes[0] not in late:
        return False
    return v not in late and (v in inputs or len(readers.get(v, ())) > 1)


def shared(operation: Operation, readers: dict[int, list[int]]) -> set[int]:
    """The places of operands that others want as they are, and a library in another way."""
    reads = operation.reads
    return {
        p
        for p in relaid(operation)
        if not isinstance(reads[p], Literal) and len(readers.get(reads[p], ())) > 1
    }


def turned(members, operations, readers) -> frozenset[int]:
    """The values that are read with their dimensions in another order, and are not made so because
    others read them too: what is made of such a value lies elsewhere."""
    turns = [operations[m] for m in members if operations[m].name == "transpose"]
    return frozenset(v for turn in turns for v in turn.values if len(readers[v]) > 1)


def spread(members, operations, avals) -> frozenset[int]:
    """The operations that stretch an operand, in a group that is a library's sum."""
    if operations[members[-1]].name not in REDUCTIONS:
        return frozenset()
    return frozenset(m for m in members if _stretches(operations[m], avals))


def _stretches(operation: Operation, avals: list[Any]) -> bool:
    if operation.name not in STRETCHED | CHEAP | TRANSCENDENTAL:
        return False
    out = elements(avals[operation.writes[0]])
    return out >= LARGE and any(elements(v.aval) < out for v in operation.equation.invars)


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
