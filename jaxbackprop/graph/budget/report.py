"""What a plan keeps and what it computes again, by line of the user's code."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxbackprop.graph.budget.costs import bytes_of, size
from jaxbackprop.graph.budget.groups import Groups
from jaxbackprop.graph.budget.joint import Joint, Operation
from jaxbackprop.graph.budget.simulation import Order
from jaxbackprop.graph.lines import Line, innermost, stack

MIB = 2**20


class Row(NamedTuple):
    """A line of code: bytes kept of it for the way back, what of it is computed again, how often at
    most, and the share of that in the time of one pass there and back."""

    line: Line | None
    kept: int
    again: int
    times: int
    share: float


def table(graph: Groups, order: Order, time: float) -> list[Row]:
    """A row a line, those that keep or compute most first. `time`: that of one pass."""
    kept, again = collections.Counter(), collections.Counter()
    times, cost = collections.Counter(), collections.defaultdict(float)
    for line, bytes in kept_values(graph, order):
        kept[line] += bytes
    for line, bytes, count, each in repeated(graph, order):
        again[line] += bytes
        times[line] = max(times[line], count)
        cost[line] += each
    lines = sorted({*kept, *again}, key=lambda line: -kept[line] - again[line])
    return [Row(line, kept[line], again[line], times[line], cost[line] / time) for line in lines]


def line_of(operation: Operation) -> Line | None:
    return innermost(stack(operation.lines))


def first_back(graph: Groups, steps: Sequence[int]) -> int:
    """The place of the first step that depends on the seeds."""
    late, operations = graph.joint.late, graph.joint.operations
    for place, step in enumerate(steps):
        group = graph.groups[step]
        if any(w in late for o in group.operations for w in operations[o].writes):
            return place
    return len(steps)


def kept_values(graph: Groups, order: Order) -> Iterator[tuple[Line | None, int]]:
    """What is there when the way back begins, and read on it: line and bytes."""
    turn = first_back(graph, order.steps)
    made = {w for step in order.steps[:turn] for w in graph.groups[step].writes}
    read, renewed = set(), set()
    for step in order.steps[turn:]:
        read |= {v for v in graph.groups[step].reads if v in made and v not in renewed}
        renewed |= set(graph.groups[step].writes)
    for v in sorted(read):
        operation = graph.joint.operations[graph.groups[graph.producer[v]].operations[-1]]
        loop = operation.equation.params.get("loop")
        if loop is not None and v == operation.writes[-1]:
            yield from loop.kept(graph.choices[loop], line_of(operation))
        else:
            yield line_of(operation), graph.bytes[v]


def repeated(graph: Groups, order: Order) -> Iterator[tuple[Line | None, int, int, float]]:
    """What is computed again: line, bytes, how often, and nanoseconds in all."""
    counts = collections.Counter(order.steps)
    for step, count in counts.items():
        group = graph.groups[step]
        operation = graph.joint.operations[group.operations[-1]]
        if count > 1:
            bytes = sum(size(graph.joint.avals[v]) for v in group.writes)
            yield line_of(operation), bytes, count - 1, (count - 1) * group.cost
        if operation.name == "scan_back":
            loop = operation.equation.params["loop"]
            yield from loop.repeated(graph.choices[loop])


def step_kept(joint: Joint, choices: Any, values: Sequence[int], length: int) -> Iterator:
    """What a loop keeps of each step: line and bytes in all."""
    makers = {v: o for o in joint.operations for v in o.writes}
    for v in values:
        maker = makers.get(v)
        line = line_of(maker) if maker else None
        yield line, length * bytes_of(joint.avals, v, choices, maker)


def step_repeated(back: Groups, order: Order, length: int) -> Iterator:
    """What a step back computes again: line, bytes of one step, how often, nanoseconds in all."""
    for step, count in collections.Counter(order.steps).items():
        group = back.groups[step]
        operation = back.joint.operations[group.operations[-1]]
        late = operation.writes[0] in back.joint.late
        if count > late:
            bytes = sum(size(back.joint.avals[v]) for v in group.writes)
            yield line_of(operation), bytes, count - late, length * (count - late) * group.cost


def printed(rows: list[Row], most: int = 20) -> list[str]:
    """A table of 100 columns."""
    lines = [f"{'kept MiB':>9} {'again MiB':>9} {'times':>5} {'time':>6}  line"]
    shown = [row for row in rows if row.kept + row.again > 0][:most]
    for row in shown:
        again = f"{row.again / MIB:9.2f} {row.times:5d} {row.share:6.1%}" if row.times else " " * 22
        kept = f"{row.kept / MIB:9.2f}" if row.kept else " " * 9
        where = f"{row.line}  {row.line.text}" if row.line else "(no line of the model)"
        lines.append(f"{kept} {again}  {where}"[:100])
    left = len([row for row in rows if row.kept + row.again > 0]) - len(shown)
    return lines + ([f"… and {left} more lines"] if left else [])
