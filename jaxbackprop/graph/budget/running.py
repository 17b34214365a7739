"""A planned scan is run: ahead, with what an option keeps, and back."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.budget.emission import Evaluation
from jaxbackprop.graph.budget.options import Option
from jaxbackprop.graph.budget.simulation import plain
from jaxbackprop.graph.dependence import parts


def run_ahead(loop: Any, option: Option, inputs: Sequence[Any]) -> list:
    """The scan's outputs, and the token."""
    consts, start, xs = parts(inputs, loop.n_consts, loop.n_carry)
    ahead = functools.partial(_ahead, loop, option, consts)
    if option.segment == 1:
        end, (ys, kept) = lax.scan(ahead, start, xs, loop.length, reverse=loop.reverse)
        return [*end, *ys, kept]
    return [*_in_segments(loop, option, ahead, start, xs)]


def _ahead(loop: Any, option: Option, consts: list, carry: list, x: list) -> tuple:
    joint = option.ahead.joint
    given = [*loop.closed, *consts, *carry, *x]
    order = plain(option.ahead)._replace(held=False)
    run = Evaluation(option.ahead, order, joint.inputs[: len(given)], given)
    run.run(order.steps)
    found = [run.read(v) for v in joint.outputs]
    n = len(loop.out_flags)
    return found[: loop.n_carry], (found[loop.n_carry : n], found[n:])


def _back(loop: Any, option: Option, consts: list, x: list, kept: list, cts: list) -> list:
    joint = option.back.joint
    given = [*loop.closed, *consts, *x, *kept, *cts]
    run = Evaluation(option.back, option.order, joint.inputs, given)
    run.run(option.order.steps)
    found = iter([run.read(v) for v in joint.outputs])
    return [next(found) if flag else None for flag in loop.flags]


def _row(loop: Any, arrays: Sequence[Any], turn: Any) -> list:
    """The slices that a turn of the loop reads, without a copy of the rest."""
    place = loop.length - 1 - turn if loop.reverse else turn
    return [lax.dynamic_index_in_dim(a, place, 0, keepdims=False) for a in arrays]


def _bounds(loop: Any, option: Option) -> tuple[int, int]:
    """The turns of the first, shorter segment, and how many whole ones follow."""
    return loop.length % option.segment, loop.length // option.segment


def _in_segments(loop: Any, option: Option, ahead: Callable, start: list, xs: list) -> list:
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


def _joined(loop: Any, first: Any, rest: Any) -> Any:
    """The slices of all turns, in the order of the scan's arrays."""
    rest = rest.reshape(-1, *rest.shape[2:])
    whole = jnp.concatenate([first, rest]) if len(first) else rest
    return jnp.flip(whole, 0) if loop.reverse else whole


def run_back(loop: Any, option: Option, token: Any, inputs: Sequence[Any], cts: list) -> list:
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


def _back_step(loop: Any, option: Option, consts: list, state: tuple, slices: tuple) -> tuple:
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
