"""An order of evaluation that fits a number of bytes: groups repeat where values had to be dropped.

The groups run in their own order through a memory of a given size. For room, the value is dropped
with the least (cost to compute it again) / (bytes × time to its next use); what is missing when it
is wanted is computed again, with whatever that needs, as often as it takes. (M. Kirisame et al.,
*Dynamic Tensor Rematerialization*, 2021; here the future is known.)
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax.extend.core import Literal

from jaxbackprop.graph.budget.groups import Groups
from jaxbackprop.graph.budget.memory import lives, lodging, need, packed, peak

ROOMS = 5  # sizes of the memory that are tried for a number of bytes


class Weights(NamedTuple):
    """The exponents of bytes and of the time to the next use, in what is dropped first."""

    bytes: float
    time: float
    ahead: bool  # does a use by a dropped value count as a use?


TRIED = (
    Weights(1.0, 1.0, True),
    Weights(1.0, 1.0, False),
    Weights(1.0, 0.5, True),
    Weights(1.0, 2.0, False),
    Weights(1.0, 0.0, False),
    Weights(0.5, 1.0, True),
)


class Order(NamedTuple):
    """Groups in the order of their evaluation, its peak in bytes, and its cost in nanoseconds.

    `held`: is the compiler held to it? Else it is free to do as it would.
    """

    steps: tuple[int, ...]
    peak: int
    cost: float
    held: bool = True


class NoRoom(Exception):
    """A group needs more than there is, whatever else is dropped."""

    def __init__(self, group: int, bytes: int) -> None:
        super().__init__()
        self.group, self.bytes = group, bytes


def plain(graph: Groups) -> Order:
    """The graph's own order: everything is kept."""
    return settled(graph, measure(graph, range(len(graph.groups))))


def best(graph: Groups, bytes: int, rooms: int = ROOMS) -> Order:
    """The cheapest order found that fits; raises NoRoom, of the try that needs least.

    The memory that the groups run through is smaller where what they take has gaps.
    """
    whole = plain(graph)
    if whole.peak <= bytes:
        return whole
    room = float(bytes)
    for _ in range(rooms):
        alive = _cheapest(graph, int(room), bytes)
        order = settled(graph, alive)
        if order.peak <= bytes:
            return order
        room = 0.99 * min(room * bytes / order.peak, alive.peak)
    raise NoRoom(0, order.peak)


def _cheapest(graph: Groups, room: int, bytes: int) -> Order:
    found, failures = [], []
    for weights in TRIED:
        try:
            found.append(measure(graph, Simulation(graph, room, weights).run()))
        except NoRoom as failure:
            failures.append(failure)
    if not found:
        raise min(failures, key=lambda failure: failure.bytes)
    return min(found, key=lambda order: (order.peak > bytes, order.cost))


def least(graph: Groups, rooms: int = 2) -> tuple[Order, int]:
    """The order found in the smallest room, within 1 %, and the group that needs more than less."""
    high = plain(graph)
    low, group = 0, 0
    while high.peak - low > max(high.peak // 100, 1):
        middle = (low + high.peak) // 2
        try:
            high = best(graph, middle, rooms)
        except NoRoom as failure:
            low, group = max(middle, min(failure.bytes, high.peak - 1)), failure.group
    return high, group


def measure(graph: Groups, steps: Sequence[int]) -> Order:
    """An order with what is alive at a time, and its cost."""
    cost = sum(graph.groups[step].cost for step in steps)
    return Order(tuple(steps), peak(lives(graph, steps)), cost)


def settled(graph: Groups, order: Order) -> Order:
    """The order, with the bytes that it needs where its values lie in one block."""
    return order._replace(peak=packed(lives(graph, order.steps)))


def predicted(graph: Groups, order: Order) -> int:
    """Bytes of the order's program where it is compiled alone, and some values lie in results. A
    program around it may want its results elsewhere: a plan does not count on them."""
    return packed(lives(graph, order.steps, lodging(graph, order.steps)))


def read_ones(graph: Groups, steps: Sequence[int]) -> list[int]:
    """The order without evaluations that nothing reads: what was dropped again before that."""
    results = {v for v in graph.joint.outputs if not isinstance(v, Literal)}
    wanted: set[int] = set()
    found = []
    for step in reversed(steps):
        group = graph.groups[step]
        if group.once or any(v in wanted or v in results for v in group.writes):
            found.append(step)
            wanted.difference_update(group.writes)
            wanted.update(group.reads)
    return found[::-1]


class Simulation:
    """One run through a memory of `room` bytes; `run()` gives the groups in their order."""

    def __init__(self, graph: Groups, room: int, weights: Weights) -> None:
        self.graph, self.room, self.weights = graph, room, weights
        self.resident: set[int] = set()
        self.used = 0
        self.locked: dict[int, int] = {}
        self.uses: dict[int, list[int]] = {}
        for time, group in enumerate(graph.groups):
            for v in group.reads:
                self.uses.setdefault(v, []).append(time)
        self.clock = [0.0, *itertools.accumulate(group.cost for group in graph.groups)]
        self.small = room // 2000
        self.children: dict[int, set[int]] = {}
        for group in graph.groups:
            for v in group.reads:
                self.children.setdefault(v, set()).update(group.writes)
        self.done: set[int] = set()
        self.order: list[int] = []
        self.now = 0

    def run(self) -> list[int]:
        for time in range(len(self.graph.groups)):
            self.now = time
            self.compute(time)
        return read_ones(self.graph, self.order)

    def next_use(self, v: int) -> int | None:
        """The first group after this one that reads the value."""
        times = self.uses.get(v, ())
        place = bisect.bisect_right(times, self.now)
        return times[place] if place < len(times) else None

    def wanted(self, v: int) -> int | None:
        """As `next_use`, or that of a dropped value that is computed from it."""
        own = self.next_use(v)
        if own is not None or not self.weights.ahead:
            return own
        later = (
            self.next_use(child)
            for child in self.children.get(v, ())
            if child not in self.resident and self.graph.producer[child] in self.done
        )
        return min((time for time in later if time is not None), default=None)

    def compute(self, target: int) -> None:
        """Evaluate a group, and before it whatever it misses."""
        waiting = [self.locking(target)]
        while waiting:
            step, missing = waiting[-1]
            v = next(missing, None)
            if v is None:
                waiting.pop()
                self.evaluate(step)
            elif v not in self.resident:
                waiting.append(self.locking(self.graph.producer[v]))

    def locking(self, step: int) -> tuple[int, Iterator[int]]:
        """A group and its operands, which stay from now on until it is evaluated."""
        reads = self.graph.groups[step].reads
        for v in reads:
            self.locked[v] = self.locked.get(v, 0) + 1
        return step, iter(reads)

    def unlock(self, v: int) -> None:
        self.locked[v] -= 1
        if not self.locked[v]:
            del self.locked[v]

    def evaluate(self, step: int) -> None:
        group, bytes = self.graph.groups[step], self.graph.bytes
        ended = [v for v in group.reads if self.locked[v] == 1 and self.next_use(v) is None]
        fresh = [v for v in group.writes if v not in self.resident]
        new = sum(bytes[v] for v in group.writes)
        over = [bytes[v] for v in ended if v not in group.turned]
        self.make_room(step, need(group, new, over))
        for v in fresh:
            self.resident.add(v)
            self.used += bytes[v]
        self.order.append(step)
        self.done.add(step)
        for v in group.reads:
            self.unlock(v)
        for v in (*group.reads, *fresh):
            once = self.graph.groups[self.graph.producer[v]].once  # stays: it cannot be had again
            if not once and self.in_memory(v) and self.wanted(v) is None:
                self.drop(v)

    def in_memory(self, v: int) -> bool:
        return v in self.resident and v not in self.locked

    def drop(self, v: int) -> None:
        self.resident.discard(v)
        self.used -= self.graph.bytes[v]

    def make_room(self, step: int, bytes: int) -> None:
        while self.used + bytes > self.room:
            victim = self.victim()
            if victim is None:
                raise NoRoom(step, self.used + bytes)
            self.drop(victim)

    def victim(self) -> int | None:
        """What to drop. Candidates come by a lower bound of their score, so that the search ends
        as soon as none can be better."""
        bounds = []
        for v in self.resident:
            size = self.graph.bytes[v]
            group = self.graph.groups[self.graph.producer[v]]
            if v in self.locked or size <= self.small or group.once:
                continue
            time = self.wanted(v)
            if time is None:
                return v
            delay = self.clock[time] - self.clock[self.now] + 1.0
            divisor = size**self.weights.bytes * delay**self.weights.time
            bounds.append((group.cost / divisor, v, divisor))
        bounds.sort()
        best, chosen = float("inf"), None
        for bound, v, divisor in bounds:
            if bound >= best:
                break
            score = self.again(v, best * divisor) / divisor
            if score < best:
                best, chosen = score, v
        return chosen

    def again(self, v: int, limit: float) -> float:
        """The cost of computing a value again, with what was dropped on the way to it; the search
        is left where that is above the limit."""
        groups, producer = self.graph.groups, self.graph.producer
        seen, waiting, total = set(), [producer[v]], 0.0
        while waiting and total < limit:
            step = waiting.pop()
            if step in seen:
                continue
            seen.add(step)
            total += groups[step].cost
            waiting += [producer[u] for u in groups[step].reads if u not in self.resident]
        return total
