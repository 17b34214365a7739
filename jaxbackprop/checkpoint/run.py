"""Backpropagation by a schedule: the forward pass keeps what it says, the backward pass redoes the
rest.

The state of layer l is the one array that the backward pass wants of it: a, or z where σ′ cannot be
had from a. The parameters are taken as *pieces*: a stack, or a run of plain layers. Each has its
own schedule and keeps its input.

A stack's schedule is data: tables of integers that one loop reads. Its program is as long for a
thousand layers as for two. Plain layers are unrolled; there XLA would find that a recomputed
layer equals the first computation, and keep that one instead: an optimization barrier ties each
restart to the error that it waits for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxbackprop.activations import Activation
from jaxbackprop.backprop import last_error, layer_gradient
from jaxbackprop.checkpoint.schedule import Schedule, Visit, held, slots
from jaxbackprop.equations import hidden_error
from jaxbackprop.network import (
    Layer,
    Network,
    Params,
    Trace,
    check_columns,
    check_params,
    check_targets,
    cost,
    layers_in,
)

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

State = Float[Array, "n m"]


def pieces(depths: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first, end) among the entries of params: stacks one by one, plain layers in runs.

    `depths` has the depth of each stack, and 0 for a plain layer.
    """
    first = 0
    for k, depth in enumerate(depths):
        if depth or k + 1 == len(depths) or depths[k + 1]:
            yield first, k + 1
            first = k + 1


def depths_of(params: Params) -> tuple[int, ...]:
    """The depth of each stack among the entries of params, 0 for a plain layer."""
    return tuple(layers_in(layer) if layer.W.ndim == 3 else 0 for layer in params)


def run(
    network: Network,
    schedules: tuple[Schedule, ...],
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients, shaped as params, with one schedule for each piece.

    Raises ValueError where x, y or params do not fit the network.
    """
    check_params(network, params)
    check_columns("x", x, network.sizes[0], params)
    sigma, state, l = network.sigma(0), x, 0
    work = []
    for (first, end), schedule in zip(pieces(depths_of(params)), schedules, strict=True):
        entries = params[first:end]
        up, down = (_stack_up, _stack_down) if entries[0].W.ndim == 3 else (_plain_up, _plain_down)
        chain = _Chain(sigma, entries, state, l == 0)
        kept, hand = up(chain, schedule)
        work.append((down, chain, schedule, kept, hand))
        l += len(schedule)
        z = _weighted_input(chain, _top(entries), hand, inner=len(schedule) > 1)
        state = _state(sigma, z)
    a = network.sigma(l).value(z)
    trace = Trace((z,), (x, a))
    check_targets(a, y)
    delta, gradients = last_error(network, trace, y), []
    for down, chain, schedule, kept, hand in reversed(work):
        delta, own = down(chain, schedule, kept, hand, delta)
        gradients = [*own, *gradients]
    return cost(network, trace, y), tuple(gradients)


class _Chain(NamedTuple):
    """A piece of the network: σ of its inner layers, its parameters, the state before it."""

    sigma: Activation
    entries: tuple[Layer, ...]
    input: State
    at_x: bool  # the input is x, which is an activation whatever the states are


def _top(entries: tuple[Layer, ...]) -> Layer:
    layer = entries[-1]
    return Layer(layer.W[-1], layer.b[-1]) if layer.W.ndim == 3 else layer


def _state(sigma: Activation, z: State) -> State:
    return sigma.value(z) if sigma.from_a else z


def _activation(chain: _Chain, state: State, inner: bool | Array) -> State:
    """a of a state; `inner` says that the state is not the chain's input."""
    if chain.sigma.from_a:
        return state
    if not chain.at_x:
        return chain.sigma.value(state)
    if isinstance(inner, bool):
        return chain.sigma.value(state) if inner else state
    return jnp.where(inner, chain.sigma.value(state), state)


def _weighted_input(chain: _Chain, layer: Layer, state: State, inner: bool | Array) -> State:
    return layer.W @ _activation(chain, state, inner) + layer.b


def _step_down(
    chain: _Chain, layer: Layer, state: State, inner: bool | Array, delta: State
) -> tuple[State, Layer]:
    """BP3, BP4 and BP2 of one layer, from the state before it."""
    a = _activation(chain, state, inner)
    sigma_prime = chain.sigma.derivative(state, a)
    return hidden_error(layer.W, delta, sigma_prime), layer_gradient(delta, a)


def _plain_advance(
    chain: _Chain, visit: Visit, to: int, kept: dict[int, State], state: State
) -> State:
    for s in range(visit.start, to):
        state = _state(chain.sigma, _weighted_input(chain, chain.entries[s], state, s > 0))
        if s + 1 in visit.keep:
            kept[s + 1] = state
    return state


def _plain_up(chain: _Chain, schedule: Schedule) -> tuple[dict[int, State], State]:
    kept: dict[int, State] = {}
    hand = _plain_advance(chain, schedule[0], len(schedule) - 1, kept, chain.input)
    return kept, hand


def _plain_down(
    chain: _Chain, schedule: Schedule, kept: dict[int, State], hand: State, delta: State
) -> tuple[State, list[Layer]]:
    gradients = []
    for i, visit in zip(range(len(schedule), 0, -1), schedule, strict=True):
        if i < len(schedule):
            start = kept.pop(visit.start) if visit.start == i - 1 > 0 else None
            if start is None:
                start = kept.get(visit.start, chain.input)
            if visit.start < i - 1:
                start, delta = jax.lax.optimization_barrier((start, delta))
            hand = _plain_advance(chain, visit, i - 1, kept, start)
        layer = chain.entries[i - 1]
        if i == 1 and chain.at_x:
            gradients.append(layer_gradient(delta, hand))
        else:
            delta, gradient = _step_down(chain, layer, hand, i > 1, delta)
            gradients.append(gradient)
    return delta, gradients[::-1]


class _Tables(NamedTuple):
    """A schedule as integers. For each visit its kept state's slot, or −1 for the input, and its
    range of advances; for each advance its layer, and the slot that keeps its state, or −1."""

    slot: Int[np.ndarray, " depth"]
    begin: Int[np.ndarray, " depth"]
    end: Int[np.ndarray, " depth"]
    layer: Int[np.ndarray, " advances"]
    keep: Int[np.ndarray, " advances"]


def _tables(schedule: Schedule) -> _Tables:
    d, free = len(schedule), list(range(slots(schedule)))[::-1]
    where: dict[int, int] = {0: -1}
    visits, advances = [], []
    for n, (visit, kept) in enumerate(zip(schedule, held(schedule), strict=True)):
        for state in [s for s in where if s > 0 and s not in kept and s >= d - n]:
            free.append(where.pop(state))
        begin = len(advances)
        for s in range(visit.start, d - 1 - n):
            if s + 1 in visit.keep:
                where[s + 1] = free.pop()
            advances.append((s, where[s + 1] if s + 1 in visit.keep else -1))
        visits.append((where[visit.start], begin, len(advances)))
    columns = (*zip(*visits, strict=True), *zip(*(advances or [(0, -1)]), strict=True))
    return _Tables(*(np.array(column, np.int32) for column in columns))


def _stack_advance(
    chain: _Chain, tables: _Tables, begin, end, kept: Array, hand: State
) -> tuple[Array, State]:
    (stack,) = chain.entries
    layer_of, slot_of = jnp.asarray(tables.layer), jnp.asarray(tables.keep)

    def advance(n, carry):
        kept, hand = carry
        s, slot = layer_of[n], slot_of[n]
        z = _weighted_input(chain, Layer(stack.W[s], stack.b[s]), hand, s > 0)
        hand = _state(chain.sigma, z)
        # A loop of one turn or none: where a branch might copy all slots, a loop works in place.
        keep = lambda _, kept: kept.at[slot].set(hand)
        return jax.lax.fori_loop(0, (slot >= 0).astype(int), keep, kept), hand

    return jax.lax.fori_loop(begin, end, advance, (kept, hand))


def _stack_up(chain: _Chain, schedule: Schedule) -> tuple[Array, State]:
    tables = _tables(schedule)
    room = jnp.zeros((max(slots(schedule), 1), *chain.entries[0].b.shape[1:2], chain.input.shape[1]), chain.input.dtype)
    return _stack_advance(chain, tables, tables.begin[0], tables.end[0], room, chain.input)


def _stack_down(
    chain: _Chain, schedule: Schedule, kept: Array, hand: State, delta: State
) -> tuple[State, list[Layer]]:
    (stack,) = chain.entries
    tables, d = _tables(schedule), len(schedule)

    def step(carry, visit):
        kept, hand, delta = carry
        s, slot, begin, end = visit
        layer = Layer(stack.W[s], stack.b[s])
        delta, gradient = _step_down(chain, layer, hand, s > 0, delta)
        hand = jnp.where(slot >= 0, kept[jnp.maximum(slot, 0)], chain.input)
        kept, hand = _stack_advance(chain, tables, begin, end, kept, hand)
        return (kept, hand, delta), gradient

    # The turn of layer i ends with the visit of layer i − 1; the last one has none to make.
    nexts = (np.append(column[1:], last)[::-1] for column, last in
             ((tables.slot, -1), (tables.begin, 0), (tables.end, 0)))
    scanned = (jnp.arange(d), *map(jnp.asarray, nexts))
    (_, _, delta), gradient = jax.lax.scan(step, (kept, hand, delta), scanned, reverse=True)
    return delta, [gradient]
