"""Backpropagation by a schedule: the forward pass keeps what it says, the backward pass redoes the
rest.

It is a second walk beside `backward`, and begins where that one ends: `backward` has a whole Trace
before it starts and hands out every δ; here states come and go while it walks, δ is used up on the
way, and what is kept, evaluated again or exchanged stands between the same four equations.

The state of layer l is the one array that the backward pass wants of it: a, or z where σ′ cannot be
had from a. The parameters are taken as *pieces*: a stack, or a run of plain layers. The input of a
piece is kept, and between two inputs it follows a schedule of its own; that of a piece with d
layers is for d + 1, since its last state is the input of the next piece. The last piece has no next
one: its schedule is for d layers.

A stack's schedule is data: tables of integers (`tables.py`) that one loop reads. Its program is as
long for a thousand layers as for two. Plain layers are unrolled; there XLA would find that a
recomputed layer equals the first computation, and keep that one instead: an optimization barrier
ties each restart to the error that it waits for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxbackprop.activations import Activation
from jaxbackprop.checkpoint.exchange import ALONE, Exchange
from jaxbackprop.checkpoint.schedule import Schedule, Visit, slots
from jaxbackprop.checkpoint.tables import Tables, tables_of
from jaxbackprop.checkpoint.ties import after, held_back
from jaxbackprop.equations import bias_gradient, hidden_error, weight_gradient
from jaxbackprop.forward import cost, last_error
from jaxbackprop.network import Layer, Network, Params, Trace, layers_in
from jaxbackprop.refusals import check_targets

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

State = Float[Array, "_ m"]
Slots = Float[Array, "_ _ m"]
Index = Int[Array, ""] | Int[np.ndarray, ""] | np.integer


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
    y: Float[Array, "q m"],
    exchange: Exchange = ALONE,
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients, shaped as params, with one schedule for each piece.

    With an exchange, params and examples are those of one device, and so is the cost.
    Raises ValueError where y does not fit the output.
    """
    state, way, l = x, [], 1
    for (first, end), schedule in zip(pieces(depths_of(params)), schedules, strict=True):
        entries, before = params[first:end], l
        l += sum(map(layers_in, entries))
        width, layers = network.sizes[before], range(before, l)
        chain = _Chain(network.sigma(0), entries, layers, width, state, first == 0, exchange)
        kept, state = (_stack_up if depths_of(chain.entries)[0] else _plain_up)(chain, schedule)
        way.append((chain, schedule, kept))
    z = _weighted_input(chain, params[-1], network.depth, state, len(chain.entries) > 1)
    a = network.sigma(network.depth).value(z)
    check_targets(a, y)
    trace = Trace((z,), (x, a))
    delta, gradients = last_error(network, trace, y), ()
    for chain, schedule, kept in reversed(way):
        down = _stack_down if depths_of(chain.entries)[0] else _plain_down
        delta, own = down(chain, schedule, kept, state, delta)
        gradients = (*own, *gradients)
    return cost(network, trace, y), gradients


class _Chain(NamedTuple):
    """A piece of the network: σ of its inner layers, its parameters, the state before it."""

    sigma: Activation
    entries: tuple[Layer, ...]
    layers: range  # their numbers
    width: int  # of its first layer
    input: State
    at_x: bool  # the input is x, which is an activation whatever the states are
    exchange: Exchange


def _activation(chain: _Chain, state: State, inner: bool | Array) -> State:
    """a of a state; `inner` says that the state is not the chain's input."""
    if chain.sigma.from_a or (chain.at_x and inner is False):
        return state
    a = chain.sigma.value(state)
    return jnp.where(inner, a, state) if chain.at_x and inner is not True else a


def _weighted_input(
    chain: _Chain, layer: Layer, l: int, state: State, inner: bool | Array
) -> State:
    W, b = (chain.exchange.whole(own, l) for own in layer)
    return chain.exchange.joined(W @ _activation(chain, state, inner), b, l)


def _next(chain: _Chain, layer: Layer, l: int, state: State, inner: bool | Array) -> State:
    z = _weighted_input(chain, layer, l, state, inner)
    return chain.sigma.value(z) if chain.sigma.from_a else z


def _gradient(chain: _Chain, l: int, delta: State, a: State) -> Layer:
    """BP3 and BP4."""
    own = chain.exchange.part(delta, l)
    return chain.exchange.summed(Layer(weight_gradient(own, a), bias_gradient(own)), l)


def _error(chain: _Chain, W: Float[Array, "_ _"], l: int, delta: State, slope: State) -> State:
    """BP2."""
    exchange = chain.exchange
    whole = exchange.whole(exchange.anew(W, delta), l)
    return exchange.error(hidden_error(whole, exchange.part(delta, l), slope), l)


def _plain_visit(
    chain: _Chain,
    visit: Visit,
    to: int,
    kept: dict[int, State],
    state: State,
    error: State | None = None,
) -> State:
    """The state `to`, from the kept one; not before the error is there."""
    for s in range(visit.start, to):
        layer = chain.entries[s]
        if error is not None and s == visit.start:
            if chain.sigma.from_a and layer.W.size < state.size:
                layer = Layer(held_back(error, layer.W), layer.b)
            else:
                state = held_back(error, state)
        if error is not None:
            layer = Layer(*(chain.exchange.anew(own, error) for own in layer))
        state = _next(chain, layer, chain.layers[s], state, s > 0)
        if s + 1 in visit.keep:
            kept[s + 1] = state
    return state


def _plain_up(chain: _Chain, schedule: Schedule) -> tuple[dict[int, State], State]:
    kept: dict[int, State] = {}
    return kept, _plain_visit(chain, schedule[0], len(schedule) - 1, kept, chain.input)


def _plain_down(
    chain: _Chain, schedule: Schedule, kept: dict[int, State], top: State, delta: State
) -> tuple[State, tuple[Layer, ...]]:
    gradients = []
    for i in range(len(chain.entries), 0, -1):
        visit = schedule[len(schedule) - i]
        hand = kept.get(visit.start, chain.input)
        if i == len(schedule):
            hand = top
        elif visit.start < i - 1:
            hand = _plain_visit(chain, visit, i - 1, kept, hand, delta)
        elif not chain.sigma.from_a:
            hand = held_back(delta, hand)
        a, l = _activation(chain, hand, i > 1), chain.layers[i - 1]
        gradients.append(_gradient(chain, l, delta, a))
        if i > 1 or not chain.at_x:
            slope = chain.sigma.derivative(hand, a)
            delta = _error(chain, chain.entries[i - 1].W, l, delta, slope)
    return delta, tuple(reversed(gradients))


def _stack_visit(
    chain: _Chain, tables: Tables, begin: Index, end: Index, kept: Slots, hand: State
) -> tuple[Slots, State]:
    (stack,) = chain.entries
    layer_of, slot_of = jnp.asarray(tables.layer), jnp.asarray(tables.keep)

    def advance(n, carry):
        kept, hand = carry
        s, slot = layer_of[n], slot_of[n]
        layer = Layer(stack.W[s], stack.b[s])
        hand = _next(chain, layer, chain.layers[0], hand, s > 0)
        # A loop of one turn or none: where a branch might copy all slots, a loop works in place.
        keep = jax.lax.fori_loop(
            0, jnp.where(slot < 0, 0, 1), lambda _, k: k.at[slot].set(hand), kept
        )
        return keep, hand

    return jax.lax.fori_loop(begin, end, advance, (kept, hand))


def _stack_up(chain: _Chain, schedule: Schedule) -> tuple[Slots, State]:
    tables = tables_of(schedule)
    batch = chain.input.shape[1]
    kept = jnp.zeros((max(slots(schedule), 1), chain.width, batch), chain.input.dtype)
    return _stack_visit(chain, tables, tables.begin[0], tables.end[0], kept, chain.input)


def _stack_down(
    chain: _Chain, schedule: Schedule, kept: Slots, top: State, delta: State
) -> tuple[State, tuple[Layer, ...]]:
    (stack,), l = chain.entries, chain.layers[0]
    tables = tables_of(schedule)
    again = (tables.end[1:] > tables.begin[1:]).any()

    def turn(carry, visit):
        kept, delta = carry
        s, slot, begin, end = visit
        hand = jnp.where(slot < 0, chain.input, kept[jnp.maximum(slot, 0)])
        if again:
            kept, hand = _stack_visit(chain, tables, begin, end, kept, hand)
        a = _activation(chain, hand, s > 0)
        gradient = _gradient(chain, l, delta, a)
        W = stack.W[after(gradient, s)]
        return (kept, _error(chain, W, l, delta, chain.sigma.derivative(hand, a))), gradient

    visits = (column[:0:-1] for column in (tables.slot, tables.begin, tables.end))
    turns = (jnp.arange(len(stack.W)), *map(jnp.asarray, visits))
    (_, delta), gradient = jax.lax.scan(turn, (kept, delta), turns, reverse=True)
    return delta, (gradient,)
