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

from jaxbackprop.graph.budget.groups import Group, Groups, size

WIDER = 4  # sizes of the memory that are tried for a number of bytes


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
    return measure(graph, range(len(graph.groups)))


def best(graph: Groups, bytes: int) -> Order:
    """The cheapest order found that fits; raises NoRoom, of the try that needs least.

    The memory that the groups run through is larger as long as what it takes fits: some values lie
    where a result comes to lie.
    """
    whole = plain(graph)
    if whole.peak <= bytes:
        return whole
    room, found, failed = float(bytes), None, None
    for _ in range(WIDER):
        try:
            order = _cheapest(graph, int(room), bytes)
        except NoRoom as failure:
            if failed is None or failure.bytes < failed.bytes:
                failed = failure
            room *= 1.1
            continue
        if order.peak > bytes:
            break
        if found is None or order.cost < found.cost:
            found = order
        room *= min(max(bytes / order.peak, 1.02), 1.3)
    if found is None:
        raise failed or NoRoom(0, int(room))
    return found


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


def least(graph: Groups) -> tuple[Order, int]:
    """The order found in the smallest room, within 1 %, and the group that needs more than less."""
    high = plain(graph)
    low, group = 0, 0
    while high.peak - low > max(high.peak // 100, 1):
        middle = (low + high.peak) // 2
        try:
            high = best(graph, middle)
        except NoRoom as failure:
            low, group = max(middle, min(failure.bytes, high.peak - 1)), failure.group
    return high, group


def measure(graph: Groups, steps: Sequence[int]) -> Order:
    """The exact peak of an order: each evaluation's results live until they are last read."""
    last: dict[tuple[int, int], int] = {}
    version: dict[int, int] = {}
    for time, step in enumerate(steps):
        group = graph.groups[step]
        last.update({(v, version[v]): time for v in group.reads})
        version.update(dict.fromkeys(group.writes, time))
        last.update({(v, time): time for v in group.writes})
    lodged = lodging(graph, steps, last)
    alive = peak = 0
    version = {}
    for time, step in enumerate(steps):
        group = graph.groups[step]
        sizes = [0 if (v, time) in lodged else graph.bytes[v] for v in group.writes]
        ended = [
            graph.bytes[v]
            for v in dict.fromkeys(group.reads)
            if last[v, version[v]] == time and (v, version[v]) not in lodged
        ]
        peak = max(peak, alive + need(group, sum(sizes), ended))
        alive += sum(sizes) - sum(ended)
        version.update(dict.fromkeys(group.writes, time))
        alive -= sum(
            b for v, b in zip(group.writes, sizes, strict=True) if last[v, time] == time
        )
    return Order(tuple(steps), peak, sum(graph.groups[step].cost for step in steps))


def lodging(graph: Groups, steps: Sequence[int], last: dict) -> set[tuple[int, int]]:
    """The evaluations that lie where a result comes to lie, which is written after they have ended.

    As XLA places them: the largest first, each in the smallest result that has room for it.
    """
    results = {v for v in graph.joint.outputs if not isinstance(v, Literal)}
    written = {v: t for t, step in enumerate(steps) for v in graph.groups[step].writes if v in results}
    homes = sorted((size(graph.joint.avals[v]), t) for v, t in written.items())
    if not homes:
        return set()
    taken: list[list[tuple[int, int]]] = [[] for _ in homes]
    guests = sorted(
        ((graph.bytes[v], begin, end, v) for (v, begin), end in last.items() if graph.bytes[v]),
        reverse=True,
    )
    found = set()
    for bytes, begin, end, v in guests:
        if bytes < homes[-1][0] // 64:
            break
        for place in range(bisect.bisect_left(homes, (bytes, 0)), len(homes)):
            if end < homes[place][1] and all(end < b or e < begin for b, e in taken[place]):
                taken[place].append((begin, end))
                found.add((v, begin))
                break
    return found


def need(group: Group, new: int, ended: Sequence[int]) -> int:
    """Bytes that a group adds while it runs: elementwise, it writes over an operand that ends."""
    over = max(ended, default=0) if group.in_place else 0
    return group.workspace + new - min(over, new)


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
        return self.order

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
        self.make_room(step, need(group, new, [bytes[v] for v in ended]))
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
