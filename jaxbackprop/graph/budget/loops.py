"""A scan under a budget: what each step keeps, and segments of steps that are run again.

A step there and back is one joint graph. An *option* says what of a step is kept for its way back
(`cuts`), in what order the way back is evaluated, and how many steps make a segment: of a segment
only the carry at its start is kept, and its steps run again before they are walked back. In the
graph around it, the loop ahead and the loop back are two operations, and one value goes from one to
the other: the *token*, of as many bytes as the option keeps.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from jaxbackprop.graph.budget import cuts as cutting
from jaxbackprop.graph.budget.emission import Evaluation
from jaxbackprop.graph.budget.groups import Choices, Groups, bytes_of, form, once, size
from jaxbackprop.graph.budget.joint import Joint, flatten
from jaxbackprop.graph.budget.report import step_kept, step_repeated
from jaxbackprop.graph.budget.simulation import NoRoom, Order, best, least, plain
from jaxbackprop.graph.dependence import dependence, open_jaxpr
from jaxbackprop.graph.halves import there_and_back
from jaxbackprop.graph.loop import lengths, parts, refuse
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import evaluate

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


class Loop:
    """A scan and its options, from what costs least time to what needs least memory."""

    def __init__(self, params: dict, active: Sequence[bool]) -> None:
        self.length, self.reverse = params["length"], params["reverse"]
        self.n_consts, self.n_carry = lengths(params)
        jaxpr, closed = open_jaxpr(params["jaxpr"])
        self.flags, self.out_flags = dependence(jaxpr, active, self.n_consts, self.n_carry)
        self.joint, self.closed = _step(jaxpr, closed, self.flags, self.out_flags)
        self.out_avals = [v.aval for v in jaxpr.outvars]
        self.options = _options(self)

    def ahead(self, option: Option, inputs: Sequence[Any]) -> list:
        return run_ahead(self, option, inputs)

    def back(self, option: Option, values: Sequence[Any]) -> list:
        n = len(self.flags)
        token, inputs, cts = values[0], values[1 : n + 1], list(values[n + 1 :])
        return run_back(self, option, token, inputs, cts)

    def kept(self, option: Option, line: Any) -> Iterator:
        """What is kept for the way back: lines and bytes."""
        if option.segment > 1:
            yield line, option.kept
        else:
            yield from step_kept(self.joint, option.ahead.choices, option.values, self.length)

    def repeated(self, option: Option) -> Iterator:
        """What the way back computes again: lines, bytes of a step, how often, nanoseconds."""
        yield from step_repeated(option.back, option.order, self.length)
        if option.segment > 1:
            everything = plain(option.ahead)
            yield from step_repeated(option.ahead, everything, self.length)

    def __repr__(self) -> str:
        return f"Loop({id(self)})"


@recorder("planned_scan")
def planned_scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The loop ahead and the loop back, as two operations of the graph around them."""
    try:
        loop = Loop(equation.params, active)
    except UnsupportedPrimitive as error:
        return evaluate(equation, inputs), refuse(error)
    *outputs, token = AHEAD.bind(*inputs, loop=loop, outs=tuple(v.aval for v in equation.outvars))

    def pull(cts):
        cts = [
            jnp.zeros_like(out) if ct is None else ct
            for ct, out, flag in zip(cts, outputs, loop.out_flags, strict=True)
            if flag
        ]
        wanted = [v.aval for v, flag in zip(equation.invars, loop.flags, strict=True) if flag]
        found = iter(BACK.bind(token, *inputs, *cts, loop=loop, outs=tuple(wanted)))
        found = [next(found) if flag else None for flag in loop.flags]
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return outputs, pull


TOKEN = jax.typeof(np.int32(0))
AHEAD, BACK = Primitive("scan_ahead"), Primitive("scan_back")
AHEAD.multiple_results = BACK.multiple_results = True
AHEAD.def_abstract_eval(lambda *avals, loop, outs: [*outs, TOKEN])
BACK.def_abstract_eval(lambda *avals, loop, outs: list(outs))


def _step(jaxpr: Any, closed: Sequence, flags: list[bool], out_flags: list[bool]) -> tuple:
    """The joint graph of a step: its inputs are constants of the text, the step's inputs, and the
    cotangents of the outputs that have one; its outputs those of the step and the gradients."""
    cts = [v.aval for v, flag in zip(jaxpr.outvars, out_flags, strict=True) if flag]
    whole, consts = open_jaxpr(there_and_back(jaxpr, closed, flags, out_flags))
    return flatten(whole, len(cts)), list(consts)


def _options(loop: Loop) -> list[Option]:
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


def _options_of(loop: Loop, choices: Choices) -> list[Option]:
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
            work = max(order.peak, step_ahead) + carry_bytes
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


def loops_in(joint: Joint) -> list[Loop]:
    return [o.equation.params["loop"] for o in joint.operations if o.name == "scan_ahead"]


def paths(loops: list[Loop], most: int) -> list[Choices]:
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


def run_ahead(loop: Loop, option: Option, inputs: Sequence[Any]) -> list:
    """The scan's outputs, and the token."""
    consts, start, xs = parts(inputs, loop.n_consts, loop.n_carry)
    ahead = functools.partial(_ahead, loop, option, consts)
    if option.segment == 1:
        end, (ys, kept) = lax.scan(ahead, start, xs, loop.length, reverse=loop.reverse)
        return [*end, *ys, kept]
    return [*_in_segments(loop, option, ahead, start, xs)]


def _ahead(loop: Loop, option: Option, consts: list, carry: list, x: list) -> tuple:
    joint = option.ahead.joint
    given = [*loop.closed, *consts, *carry, *x]
    run = Evaluation(option.ahead, False, joint.inputs[: len(given)], given)
    run.run(range(len(option.ahead.groups)))
    found = [run.read(v) for v in joint.outputs]
    n = len(loop.out_flags)
    return found[: loop.n_carry], (found[loop.n_carry : n], found[n:])


def _back(loop: Loop, option: Option, consts: list, x: list, kept: list, cts: list) -> list:
    joint = option.back.joint
    given = [*loop.closed, *consts, *x, *kept, *cts]
    run = Evaluation(option.back, option.order.held, joint.inputs, given)
    run.run(option.order.steps)
    found = iter([run.read(v) for v in joint.outputs])
    return [next(found) if flag else None for flag in loop.flags]


def _row(loop: Loop, arrays: Sequence[Any], turn: Any) -> list:
    """The slices that a turn of the loop reads, without a copy of the rest."""
    place = loop.length - 1 - turn if loop.reverse else turn
    return [lax.dynamic_index_in_dim(a, place, 0, keepdims=False) for a in arrays]


def _bounds(loop: Loop, option: Option) -> tuple[int, int]:
    """The turns of the first, shorter segment, and how many whole ones follow."""
    return loop.length % option.segment, loop.length // option.segment


def _in_segments(loop: Loop, option: Option, ahead: Callable, start: list, xs: list) -> list:
    first, whole = _bounds(loop, option)

    def turn(carry, t):
        carry, (ys, _) = ahead(carry, _row(loop, xs, t))
        return carry, ys

    def segment(carry, n):
        end, ys = lax.scan(turn, carry, first + n * option.segment + jnp.arange(option.segment))
        return end, (ys, carry)

    carry, ys0 = lax.scan(turn, start, jnp.arange(first))
    end, (ys, starts) = lax.scan(segment, carry, jnp.arange(whole))
    ys = [_joined(loop, a, b) for a, b in zip(ys0, ys, strict=True)]
    return [*end, *ys, (start, starts)]


def _joined(loop: Loop, first: Any, rest: Any) -> Any:
    """The slices of all turns, in the order of the scan's arrays."""
    rest = rest.reshape(-1, *rest.shape[2:])
    whole = jnp.concatenate([first, rest]) if len(first) else rest
    return jnp.flip(whole, 0) if loop.reverse else whole


def run_back(loop: Loop, option: Option, token: Any, inputs: Sequence[Any], cts: list) -> list:
    """The cotangents of the scan's inputs that have one."""
    consts, _, xs = parts(inputs, loop.n_consts, loop.n_carry)
    wanted = parts(loop.flags, loop.n_consts, loop.n_carry)
    carried = sum(loop.out_flags[: loop.n_carry])
    ct_end, ct_ys = cts[:carried], cts[carried:]
    totals = [jnp.zeros_like(c) for c, w in zip(consts, wanted[0], strict=True) if w]
    step = functools.partial(_back_step, loop, option, consts)
    state = (totals, ct_end)
    if option.segment == 1:
        state, of_xs = lax.scan(
            step, state, (xs, token, ct_ys), loop.length, reverse=not loop.reverse
        )
    else:
        state, of_xs = _segments_back(loop, option, step, state, (consts, xs, ct_ys), token)
    return [*state[0], *state[1], *of_xs]


def _back_step(loop: Loop, option: Option, consts: list, state: tuple, slices: tuple) -> tuple:
    totals, ct_carry = state
    x, kept, ct_y = slices
    found = _back(loop, option, consts, x, kept, [*ct_carry, *ct_y])
    of_consts, of_carry, of_x = parts(found, loop.n_consts, loop.n_carry)
    gained = [g for g in of_consts if g is not None]
    totals = [t + g for t, g in zip(totals, gained, strict=True)]
    return (totals, [g for g in of_carry if g is not None]), [g for g in of_x if g is not None]


def _segments_back(loop, option, step, state, arrays, token) -> tuple:
    """Each segment ahead once more, with what its steps keep, then back."""
    consts, xs, ct_ys = arrays
    start, starts = token
    first, whole = _bounds(loop, option)

    def segment(state, carry, turns):
        def again(carry, t):
            carry, (_, kept) = _ahead(loop, option, consts, carry, _row(loop, xs, t))
            return carry, kept

        _, kept = lax.scan(again, carry, turns)

        def back(state, slices):
            t, kept = slices
            return step(state, (_row(loop, xs, t), kept, _row(loop, ct_ys, t)))

        return lax.scan(back, state, (turns, kept), reverse=True)

    def whole_segment(state, slices):
        n, carry = slices
        return segment(state, carry, first + n * option.segment + jnp.arange(option.segment))

    state, of_xs = lax.scan(whole_segment, state, (jnp.arange(whole), starts), reverse=True)
    state, of_first = segment(state, start, jnp.arange(first)) if first else (state, None)
    of_first = [g[0, :0] for g in of_xs] if of_first is None else of_first
    return state, [_joined(loop, a, b) for a, b in zip(of_first, of_xs, strict=True)]
