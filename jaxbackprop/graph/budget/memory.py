"""How many bytes an order of evaluation needs: how long its values live, and where they lie.

A value lives from its evaluation to its last reader. The values are packed into one block as XLA
does: those that are largest, or live longest, first, each in the smallest gap that holds it. Some
can lie where a result comes to lie, which is written after they have ended.
"""

import bisect
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph.budget.costs import size
from jaxbackprop.graph.budget.groups import Group, Groups

Evaluated = tuple[int, int]  # a value, and the time of its evaluation


class Life(NamedTuple):
    """Bytes from the first time to the last, both included."""

    bytes: int
    begin: int
    end: int


def lives(graph: Groups, steps: Sequence[int], lodged: Set[Evaluated] = frozenset()) -> list[Life]:
    """What is in memory, but for what is lodged, in the order of its beginning."""
    last = ends(graph, steps)
    found: list[Life] = []
    place: dict[Evaluated, int] = {}  # of those that can be written over
    version: dict[int, int] = {}
    for time, step in enumerate(steps):
        group = graph.groups[step]
        ended = [(v, version[v]) for v in group.reads if last[v, version[v]] == time]
        over = [place[e] for e in ended if e in place and e[0] not in group.turned]
        version.update(dict.fromkeys(group.writes, time))
        if group.workspace:
            found.append(Life(group.workspace, time, time))
        for v in group.writes:
            bytes, end = graph.bytes[v], last[v, time]
            if not bytes or (v, time) in lodged:
                continue
            fitting = [i for i in over if group.in_place and found[i].bytes >= bytes]
            if fitting:
                i = min(fitting, key=lambda i: found[i].bytes)
                over.remove(i)
                found[i] = found[i]._replace(end=end)
            else:
                i = len(found)
                found.append(Life(bytes, time, end))
            place[v, time] = i
    return found


def ends(graph: Groups, steps: Sequence[int]) -> dict[Evaluated, int]:
    """When each evaluation is read last."""
    last: dict[Evaluated, int] = {}
    version: dict[int, int] = {}
    for time, step in enumerate(steps):
        group = graph.groups[step]
        last.update({(v, version[v]): time for v in group.reads})
        version.update(dict.fromkeys(group.writes, time))
        last.update({(v, time): time for v in group.writes})
    return last


def outliving(graph: Groups, steps: Sequence[int]) -> set[int]:
    """The times at which a value is made that stays for longer than what it is made from."""
    last = ends(graph, steps)
    version: dict[int, int] = {}
    found = set()
    for time, step in enumerate(steps):
        group = graph.groups[step]
        end = max((last[v, time] for v in group.writes), default=time)
        if any(last[v, version[v]] < end for v in group.reads if graph.bytes[v]):
            found.add(time)
        version.update(dict.fromkeys(group.writes, time))
    return found


def lodging(graph: Groups, steps: Sequence[int]) -> set[Evaluated]:
    """The evaluations that lie where a result comes to lie: the largest first, each in the smallest
    that has room for it."""
    last = ends(graph, steps)
    results = {v for v in graph.joint.outputs if not isinstance(v, Literal)}
    written = {
        v: time
        for time, step in enumerate(steps)
        for v in graph.groups[step].writes
        if v in results
    }
    homes = sorted((size(graph.joint.avals[v]), time) for v, time in written.items())
    if not homes:
        return set()
    taken: list[list[tuple[int, int]]] = [[] for _ in homes]
    guests = [(graph.bytes[v], begin, end, v) for (v, begin), end in last.items()]
    found = set()
    for bytes, begin, end, v in sorted(guests, reverse=True):
        if bytes < homes[-1][0] / 64:
            break
        for i in range(bisect.bisect_left(homes, (bytes, 0)), len(homes)):
            if end < homes[i][1] and all(end < b or e < begin for b, e in taken[i]):
                taken[i].append((begin, end))
                found.add((v, begin))
                break
    return found


def peak(found: Sequence[Life]) -> int:
    """The most that is alive at a time."""
    change = np.zeros(max((life.end for life in found), default=0) + 2, np.int64)
    for life in found:
        change[life.begin] += life.bytes
        change[life.end + 1] -= life.bytes
    return int(change.cumsum().max())


def packed(found: Sequence[Life]) -> int:
    """The bytes of one block that holds them all; what is small is not placed, but counted."""
    if not found:
        return 0
    least = peak(found)
    bytes, begin, end = np.array(found).T
    large = bytes > least // 1000
    small = peak([life for life, is_large in zip(found, large, strict=True) if not is_large])
    bytes, begin, end = bytes[large], begin[large], end[large]
    orders = [np.lexsort((begin, begin - end, -bytes)), np.lexsort((begin, -bytes, begin - end))]
    return max(least, min(_height(bytes, begin, end, order) for order in orders) + small)


def _height(bytes: np.ndarray, begin: np.ndarray, end: np.ndarray, order: np.ndarray) -> int:
    bottom = np.zeros(len(bytes), np.int64)
    placed = np.zeros(len(bytes), bool)
    for i in order:
        beside = np.flatnonzero(placed & (begin <= end[i]) & (end >= begin[i]))
        beside = beside[np.argsort(bottom[beside])]
        tops = np.maximum.accumulate(bottom[beside] + bytes[beside])
        starts = np.concatenate([[0], tops])
        gaps = np.concatenate([bottom[beside], [np.iinfo(np.int64).max]]) - starts
        bottom[i] = starts[np.argmin(np.where(gaps >= bytes[i], gaps, np.iinfo(np.int64).max))]
        placed[i] = True
    return int((bottom + bytes).max(initial=0))


def need(group: Group, new: int, ended: Sequence[int]) -> int:
    """Bytes that a group adds while it runs: elementwise, it writes over an operand that ends."""
    over = max(ended, default=0) if group.in_place else 0
    return group.workspace + new - min(over, new)
