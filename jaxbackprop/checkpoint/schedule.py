"""Which states are kept when: schedules for a chain of layers, and their optima. No arrays here.

A chain of d layers leads from state 0, its input, over d − 1 inner states to state d, its output.
The backward step of layer i needs state i − 1 and no other, so a schedule is one `Visit` a layer,
from the last layer to the first: the kept state to restart from, and which states to keep on the
way. Kept states above i − 1 are free once layer i is done; the input belongs to the caller.

The cost of a schedule is its layer evaluations. Every schedule evaluates each layer once on the
way up; what it evaluates again is the price of what it does not keep.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Visit(NamedTuple):
    """To state i − 1 from `start`, a kept one at or below it, keeping the states in `keep`."""

    start: int
    keep: tuple[int, ...] = ()


Schedule = tuple[Visit, ...]  # for the layers d, d − 1, …, 1


def segments(d: int, k: int) -> Schedule:
    """Every k-th state kept on the way up, the k − 1 between them one segment at a time.

    With k ≥ d everything is kept, and each layer evaluated once.
    """
    visits = []
    for i in range(d, 0, -1):
        state = i - 1
        below = state // k * k
        if i == d:
            keep = (*range(k, below + 1, k), *range(below + 1, state))
            visits.append(Visit(0, _under(state, keep)))
        elif i % k == 0:
            visits.append(Visit(below, tuple(range(below + 1, state))))
        else:
            visits.append(Visit(state))
    return tuple(visits)


def steps(d: int, m: int) -> int:
    """t(d, m) = r d − C(m + r, r − 1): the fewest advances with m states in memory at a time.

    The state in hand is one of the m, the input is not. r is how often a layer is evaluated at
    most, the least with C(m + r, m) ≥ d. Griewank and Walther, "Algorithm 799: revolve", ACM TOMS
    26 (2000), count the other way round and get the same: m checkpoints, of which one is the
    input, and the state in hand beside them.
    """
    r = 0
    while math.comb(m + r, m) < d:
        r += 1
    return r * d - math.comb(m + r, r - 1) if r else 0


def forward_steps(d: int, m: int) -> int:
    """Revolve's own total: the advances, and a taped forward step with each backward step."""
    return steps(d, m) + d


def binomial(d: int, m: int) -> Schedule:
    """The fewest evaluations of d equal layers with m states in memory at a time."""
    least = functools.lru_cache(maxsize=None)(steps)

    def split(low: int, high: int, m: int) -> int | None:
        length = high - low
        if m == 1 or length == 1:
            return None
        best = least(length, m)
        costs = (k + least(length - k, m - 1) + least(k, m) for k in range(1, length))
        return low + 1 + next(i for i, cost in enumerate(costs) if cost == best)

    return _visits(d, m, split, lambda state: 1)


def _visits(
    d: int,
    room: int,
    split: Callable[[int, int, int], int | None],
    taken: Callable[[int], int],
) -> Schedule:
    """Keep a middle state, finish what is above it with the room that is left, then what is below.

    `split(low, high, room)` chooses the middle, or None: each state from `low` anew.
    """
    todo, visits, keep, start = [(0, d, room)], [], (), 0
    while todo:
        low, high, room = todo.pop()
        middle = split(low, high, room)
        if middle is not None:
            todo += [(low, middle, room), (middle, high, room - taken(middle))]
            keep = (*keep, middle)
            continue
        for i in range(high, low, -1):
            visits.append(Visit(start, _under(i - 1, keep)))
            keep, start = (), low
        start = todo[-1][0] if todo else 0
    return tuple(visits)


def _under(state: int, states: Sequence[int]) -> tuple[int, ...]:
    """The state to reach is in hand when it is reached: it takes no place among the kept."""
    return tuple(kept for kept in states if kept < state)


def advances(schedule: Schedule) -> int:
    """How many layers are evaluated, on the way up and again: all but the last for its output."""
    return sum(len(schedule) - 1 - n - visit.start for n, visit in enumerate(schedule))


def slots(schedule: Schedule) -> int:
    """The most states kept at a time, without the input and without the one in hand."""
    return max(len(kept) for kept in held(schedule))


def held(schedule: Schedule) -> list[tuple[int, ...]]:
    """What is kept, besides the input, while each visit is made and its layer is done."""
    kept, history = (), []
    for n, visit in enumerate(schedule):
        state = len(schedule) - 1 - n
        kept = (*(s for s in kept if s <= state), *visit.keep)
        history.append(tuple(sorted(kept)))
    return history


class Point(NamedTuple):
    """What a chain can be had for: bytes at the peak, advances, and the middle state kept."""

    bytes: int
    advances: int
    middle: int


def frontier(sizes: Sequence[int]) -> dict[tuple[int, int], list[Point]]:
    """For all low < high the best trade-offs of memory against advances in a chain.

    `sizes[s]` is the bytes of state s, and of the error δ of layer s. To go from the kept state
    `low` with the error of layer `high`: keep some middle state, finish what is above it, then
    what is below. The dynamic programme over (from, to, bytes) of Beaumont et al., "Optimal
    checkpointing for heterogeneous chains" (2019), for all bytes at once: of the points of a pair
    (from, to) only those stay that no other beats in both bytes and advances.
    """
    d = len(sizes) - 1
    table = {(s, s + 1): [Point(step_bytes(sizes, s + 1), 0, s)] for s in range(d)}
    for length in range(2, d + 1):
        for low in range(d - length + 1):
            high, found = low + length, []
            on_the_way = 0
            for middle in range(low + 1, high):
                on_the_way = max(on_the_way, advance_bytes(sizes, low, middle, high))
                for above in table[middle, high]:
                    for below in table[low, middle]:
                        peak = max(on_the_way, sizes[middle] + above.bytes, below.bytes)
                        cost = middle - low + above.advances + below.advances
                        found.append(Point(peak, cost, middle))
            table[low, high] = undominated(found)
    return table


def advance_bytes(sizes: Sequence[int], low: int, state: int, high: int) -> int:
    """While `state` is evaluated on the way from `low`: it, the one before, and the error."""
    error = sizes[high] if high < len(sizes) - 1 else 0  # on the first way up there is none yet
    return error + sizes[state] + (sizes[state - 1] if state - 1 > low else 0)


def step_bytes(sizes: Sequence[int], i: int) -> int:
    """In the backward step of layer i: its error, and the one before; at the top, z and a."""
    before = sizes[i - 1] if i > 1 else 0
    return sizes[i] + max(before, sizes[i] if i == len(sizes) - 1 else 0)


def undominated(points: list[Point]) -> list[Point]:
    """Those with fewer advances than all that need no more bytes, by rising bytes."""
    best = []
    for point in sorted(points):
        if not best or point.advances < best[-1].advances:
            best.append(point)
    return best


def unequal(sizes: Sequence[int], room: int) -> Schedule | None:
    """The fewest evaluations of a chain in `room` bytes; None where the room is too small."""
    table = frontier(sizes)
    if room < table[0, len(sizes) - 1][0].bytes:
        return None

    def split(low: int, high: int, room: int) -> int | None:
        if high - low == 1:
            return None
        return [point for point in table[low, high] if point.bytes <= room][-1].middle

    return _visits(len(sizes) - 1, room, split, sizes.__getitem__)


def peak(sizes: Sequence[int], schedule: Schedule) -> int:
    """The bytes that a schedule needs at its peak: kept states, the one in hand, errors."""
    d, most = len(sizes) - 1, 0
    before: tuple[int, ...] = ()
    for n, (visit, kept) in enumerate(zip(schedule, held(schedule), strict=True)):
        i = d - n
        base = [s for s in before if s < i]
        for state in range(visit.start + 1, i):
            stored = sum(sizes[s] for s in {*base, *(s for s in visit.keep if s < state - 1)})
            error = sizes[i] if i < d else 0
            inner = sizes[state - 1] if state - 1 > visit.start else 0
            most = max(most, stored + error + sizes[state] + inner)
        hand = sizes[i - 1] if visit.start < i - 1 else 0
        most = max(most, sum(sizes[s] for s in kept) + hand + step_bytes(sizes, i))
        before = kept
    return most
