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

    def split(low: int, high: int, m: int, again: bool) -> int | None:
        length = high - low
        if m == 1 or length == 1:
            return None
        best = least(length, m)
        costs = (k + least(length - k, m - 1) + least(k, m) for k in range(1, length))
        return low + 1 + next(i for i, cost in enumerate(costs) if cost == best)

    return visits(d, m, split, lambda state: 1)


def visits(
    d: int,
    room: int,
    split: Callable[[int, int, int, bool], int | None],
    taken: Callable[[int], int],
) -> Schedule:
    """Keep a middle state, finish what is above it with the room that is left, then what is below.

    `split(low, high, room, again)` chooses the middle, or None: each state from `low` anew.
    `again`: the way up from `low` has been gone before.
    """
    todo, made, keep, start = [(0, d, room, False)], [], (), 0
    while todo:
        low, high, room, again = todo.pop()
        middle = split(low, high, room, again)
        if middle is not None:
            above = (middle, high, room - taken(middle), False)
            todo += [(low, middle, room, True), above]
            keep = (*keep, middle)
            continue
        for i in range(high, low, -1):
            made.append(Visit(start, _under(i - 1, keep)))
            keep, start = (), low
        start = todo[-1][0] if todo else 0
    return tuple(made)


def _under(state: int, states: Sequence[int]) -> tuple[int, ...]:
    """The state to reach is in hand when it is reached: it takes no place among the kept."""
    return tuple(kept for kept in states if kept < state)


def advances(schedule: Schedule) -> int:
    """How many layers are evaluated, on the way up and again: all but the last for its output."""
    return sum(len(schedule) - 1 - n - visit.start for n, visit in enumerate(schedule))


def times(schedule: Schedule) -> tuple[int, ...]:
    """How often each layer is evaluated for its output, from the first; the last for none."""
    counts = [0] * len(schedule)
    for state, visit in zip(range(len(schedule) - 1, -1, -1), schedule, strict=True):
        for layer in range(visit.start, state):
            counts[layer] += 1
    return tuple(counts)


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
