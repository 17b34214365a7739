"""What a step of a loop keeps for its way back: the fewest bytes from which the rest can be had.

A minimum cut of the step's graph (L. Ford and D. Fulkerson, 1956): the source is what may not be
computed again, the sink what the way back reads, and a value costs its bytes to keep. One cut for
each bound on what may be computed again, in estimated nanoseconds a byte.
"""

from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from jaxbackprop.graph.budget.costs import Choices, bytes_of, cost, once
from jaxbackprop.graph.budget.joint import Joint, Operation

BOUNDS = 6


def cuts(joint: Joint, choices: Choices, at_hand: set[int]) -> list[list[int]]:
    """The values to keep, from all that the way back reads to as little as possible."""
    early = [o for o in joint.operations if not any(v in joint.late for v in o.writes)]
    free = set(at_hand)
    for operation in early:
        if operation.values and all(v in free for v in operation.values):
            free.update(operation.writes)
    free |= {v for o in early if not o.values for v in o.writes}
    made = [o for o in early if not free.issuperset(o.writes)]
    own = {v for o in made for v in o.writes} | (set(joint.inputs) - joint.late - at_hand)
    late = [o for o in joint.operations if any(v in joint.late for v in o.writes)]
    read = {v for v in {v for o in late for v in o.values} if v in own}
    ratios = {id(o): _ratio(joint, o, choices) for o in made}
    found: list[list[int]] = []
    for bound in _bounds(ratios.values()):
        fixed = {v for o in made if ratios[id(o)] > bound for v in o.writes}
        fixed |= own - {v for o in made for v in o.writes}
        kept = _cut(joint, choices, made, own, fixed, read)
        if kept not in found:
            found.append(kept)
    return found


def _ratio(joint: Joint, operation: Operation, choices: Choices) -> float:
    if once(operation):
        return float("inf")
    size = sum(bytes_of(joint.avals, v, choices, operation) for v in operation.writes)
    return cost(operation, joint.avals, choices) / max(size, 1)


def _bounds(ratios: Iterable[float]) -> list[float]:
    """From nothing to everything, at most BOUNDS of them."""
    steps = sorted({float(f"{r:.1e}") * 1.05 for r in ratios if 0 < r < float("inf")})
    chosen = (
        {steps[round(i)] for i in np.linspace(0, len(steps) - 1, BOUNDS - 1)} if steps else set()
    )
    return [0.0, *sorted(chosen)]


def _cut(joint, choices, made, own, fixed, read) -> list[int]:
    place = {v: i for i, v in enumerate(sorted(own))}
    source, sink = 2 * len(place), 2 * len(place) + 1
    tokens = {v: o for o in made for v in o.writes}
    sizes = {v: bytes_of(joint.avals, v, choices, tokens.get(v)) + 1 for v in place}
    unit = max(sum(sizes.values()) // 2**28, 1)
    endless = 2**29
    edges: dict[tuple[int, int], int] = {}
    for v, i in place.items():
        edges[2 * i, 2 * i + 1] = max(sizes[v] // unit, 1)
        if v in fixed:
            edges[source, 2 * i] = endless
        if v in read:
            edges[2 * i + 1, sink] = endless
    for operation in made:
        for v in operation.values:
            for w in operation.writes:
                if v in place and w in place:
                    edges[2 * place[v] + 1, 2 * place[w]] = endless
    if not edges or not read:
        return []
    rows, columns = zip(*edges, strict=True)
    shape = (sink + 1, sink + 1)
    capacity = csr_array((np.array(list(edges.values()), np.int32), (rows, columns)), shape)
    flow = maximum_flow(capacity, source, sink).flow
    left = capacity - flow
    left.eliminate_zeros()
    reached = set(breadth_first_order(left, source, return_predecessors=False).tolist())
    return [v for v, i in place.items() if 2 * i in reached and 2 * i + 1 not in reached]
