"""Options for a scan, from what costs least time to what needs least memory.

An option says which values are kept of each step (`cuts`), in what order the way back is evaluated,
and how many steps make a segment: of a segment only the carry at its start is kept, and its steps
run again before they are walked back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxbackprop.graph.budget import cuts as cutting
from jaxbackprop.graph.budget.costs import Choices, bytes_of, once, size
from jaxbackprop.graph.budget.groups import Groups, form, made_early
from jaxbackprop.graph.budget.joint import Joint
from jaxbackprop.graph.budget.simulation import NoRoom, Order, best, least, plain

INNER = 4  # orders of a step back that are tried for each cut
PATH = 6  # choices for the loops inside a step that are tried


class Option(NamedTuple):
    """How a loop is run: the values kept of a step, its way back, the steps of a segment.

    `kept` and `work` are bytes: of the token, and of one segment or step on the way back.
    """

    values: tuple[int, ...]
    ahead: Groups
    back: Groups
    order: Order
    segment: int
    kept: int
    work_ahead: int
    work: int
    cost_ahead: float
    cost_back: float

    @property
    def bytes(self) -> int:
        return self.kept + self.work

    @property
    def cost(self) -> float:
        return self.cost_ahead + self.cost_back


def options(loop: Any) -> list[Option]:
    """Those worth considering: each needs less memory than those that cost less."""
    found = []
    for choices in paths(loops_in(loop.joint), PATH):
        found += _options_of(loop, choices)
    found.sort(key=lambda option: (option.cost, option.bytes))
    best_ones: list[Option] = []
    for option in found:
        if not best_ones or option.bytes < 0.98 * best_ones[-1].bytes:
            best_ones.append(option)
    return best_ones


def _options_of(loop: Any, choices: Choices) -> list[Option]:
    joint, length = loop.joint, loop.length
    own = joint.inputs[len(loop.closed) :]
    fixed = [*joint.inputs[: len(loop.closed)], *own[: loop.n_consts]]
    slices = own[loop.n_consts + loop.n_carry : len(loop.flags)]
    carry = own[loop.n_consts : loop.n_consts + loop.n_carry]
    carry_bytes = sum(size(joint.avals[v]) for v in carry)
    tokens = {v: o for o in joint.operations for v in o.writes}
    early = [o for o in joint.operations if not any(v in joint.late for v in o.writes)]
    repeatable = not any(once(o) for o in early)
    outputs = joint.outputs[: len(loop.out_flags)]
    found = []
    for values in cutting.cuts(joint, choices, {*fixed, *slices}):
        ahead = form(part(joint, joint.inputs, [*outputs, *values]), choices)
        each = sum(bytes_of(joint.avals, v, choices, tokens.get(v)) for v in values)
        seeds = [v for v in joint.inputs if v in joint.late]
        given = [*fixed, *slices, *values, *seeds]
        back = form(part(joint, given, joint.outputs[len(outputs) :]), choices)
        there = sum(group.cost for group in ahead.groups)
        step_ahead = plain(ahead).peak
        for order in _orders(back):
            early = 0 if order.held else made_early(back)
            work = max(order.peak + early, step_ahead) + carry_bytes
            for segment in _segments(length) if repeatable else [1]:
                kept, run = length * each, 0.0
                if segment > 1:
                    kept, run = -(-length // segment) * carry_bytes, there
                found.append(
                    Option(
                        tuple(values),
                        ahead,
                        back,
                        order,
                        segment,
                        kept,
                        step_ahead + carry_bytes,
                        work + (segment * each if segment > 1 else 0),
                        length * there,
                        length * (order.cost + run),
                    )
                )
    return found


def _segments(length: int) -> list[int]:
    """1, and numbers of steps that grow by about a half; divisors of the length where they are
    near."""
    found, n = {1}, 2.0
    while n <= length / 2:
        near = [k for k in range(round(n * 0.85), round(n * 1.2) + 1) if k > 1 and length % k == 0]
        found.add(min(near, key=lambda k: abs(k - n)) if near else round(n))
        n *= 1.5
    return sorted(found)


def _orders(back: Groups) -> list[Order]:
    """Orders of a step back, from all of its room to the least."""
    whole = plain(back)
    found = [whole._replace(held=False)]
    lowest = least(back)[0]
    for share in range(INNER - 2, 0, -1):
        room = lowest.peak + (whole.peak - lowest.peak) * share // (INNER - 1)
        try:
            found.append(best(back, room))
        except NoRoom:
            continue
    return [*found, lowest]


def part(joint: Joint, inputs: Sequence[int], outputs: Sequence[Any]) -> Joint:
    """The part of a graph that makes the outputs from the inputs."""
    known, needed = set(inputs), []
    live = {v for v in outputs if isinstance(v, int)} - known
    for operation in reversed(joint.operations):
        if live.intersection(operation.writes):
            live |= set(operation.values) - known
            needed.append(operation)
    late = known & joint.late
    for operation in reversed(needed):
        if any(v in late for v in operation.values):
            late.update(operation.writes)
    return Joint(joint.avals, needed[::-1], list(inputs), list(outputs), late)


def loops_in(joint: Joint) -> list[Any]:
    return [o.equation.params["loop"] for o in joint.operations if o.name == "scan_ahead"]


def paths(loops: list[Any], most: int) -> list[Choices]:
    """Choices of an option for each loop, from the least time to the least memory: at each turn the
    loop goes on that saves most bytes for its time."""
    place = dict.fromkeys(loops, 0)
    found = [dict(place)]
    while True:
        steps = [
            (
                (loop.options[i + 1].cost - loop.options[i].cost + 1.0)
                / (loop.options[i].bytes - loop.options[i + 1].bytes),
                n,
                loop,
            )
            for n, (loop, i) in enumerate(place.items())
            if i + 1 < len(loop.options)
        ]
        if not steps:
            break
        place[min(steps)[2]] += 1
        found.append(dict(place))
    if len(found) > most:
        found = [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
    return [{loop: loop.options[i] for loop, i in chosen.items()} for chosen in found]
