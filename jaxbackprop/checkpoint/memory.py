"""What a schedule needs at its peak, in bytes: predicted from the shapes, before anything is built.

Counted is what XLA calls temporary: the kept states, the one in hand, the errors, and what a matrix
product needs beside its result. Parameters, x and y are arguments and the gradients results: they
are there whatever the schedule. Where a gradient is larger than a state, XLA may lend its place to
states until it is written: then less is needed than is predicted here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxbackprop.checkpoint.schedule import Schedule, held


class Chain(NamedTuple):
    """The bytes of a run of plain layers: states, its input first, and each layer's weights.

    `at_x`: the input is x. `last`: it ends in the output. `both`: σ′ wants z, the states are z, and
    a is an array beside it for a while.
    """

    states: tuple[int, ...]
    weights: tuple[int, ...]
    at_x: bool
    last: bool
    both: bool

    def part(self, low: int, high: int) -> "Chain":
        """The layers after state `low`, up to state `high`."""
        return Chain(
            self.states[low : high + 1],
            self.weights[low:high],
            self.at_x and low == 0,
            self.last and high == len(self.weights),
            self.both,
        )

    def advance(self, start: int, state: int, high: int, again: bool) -> int:
        """To evaluate `state` on the way from `start` with the error of layer `high` waiting.

        On the first way up no error waits for the last layer. `again`: where a way is gone a second
        time, its first step takes a copy of the state or the weights, to be told from the first.
        """
        before = self.states[state - 1]
        error = 0 if self.last and high == len(self.weights) else self.states[high]
        needed = error + self.states[state]
        if state - 1 > start:
            return needed + before * (1 + self.both)
        copy = before if self.both else min(before, self.weights[state - 1])
        is_activation = self.at_x and state == 1
        return needed + max(again * copy, before * (self.both and not is_activation))

    def step(self, i: int) -> int:
        """The backward step of layer i: its error, and the one before; at the top, z and a."""
        before = 0 if self.at_x and i == 1 else self.states[i - 1]
        top = self.states[i] if self.last and i == len(self.weights) else 0
        return self.states[i] + max(before * (1 + 2 * self.both), top)


class Memory(NamedTuple):
    """The bytes of a piece: its peak on the way up, what it leaves there, its peak on the way down.

    The input of the piece is not its own, the input of the next one is.
    """

    up: int
    kept: int
    down: int


def stack_memory(
    state: int, weights: int, bias: int, slots: int, layers: int, both: bool
) -> Memory:
    """A stack of equal layers: all slots at once; δ, the state in hand, a product, slices of W.

    Beside them the loop has columns of b, a number for each layer, and tables of addresses.
    """
    kept = max(slots, 1) * state + (1 + 4 * both) * bias + 4 * layers + 1024
    visit = (3 + both) * state + weights
    turn = (2 + both) * state + 2 * weights
    return Memory(kept + visit - state, kept + state, kept + max(visit, turn))


def plain_memory(chain: Chain, schedule: Schedule) -> Memory:
    """A run of plain layers under a schedule, event by event."""
    top, history = len(schedule) - 1, [(), *held(schedule)]
    up = down = 0
    for state, visit, before in zip(range(top, -1, -1), schedule, history[:-1], strict=True):
        kept, first, most = {s for s in before if s <= state}, state == top, 0
        high = state + 1 if not first or chain.last else state
        for s in range(visit.start + 1, state + 1):
            stored = sum(chain.states[k] for k in kept if k != s - 1 or k == visit.start)
            error = chain.states[high] if first and not chain.last else 0
            most = max(most, stored + chain.advance(visit.start, s, high, not first) - error)
            kept |= {s} & set(visit.keep)
        stored = sum(chain.states[k] for k in kept)
        hand = chain.states[state] if state and state not in kept else 0
        if first:
            up = most
        else:
            down = max(down, most)
        if not first or chain.last:
            down = max(down, stored + hand + chain.step(state + 1))
    kept = sum(chain.states[s] for s in history[1]) + (chain.states[top] if top else 0)
    return Memory(up, kept, down)


def peak(pieces: Sequence[Memory]) -> int:
    """The peak of a network: up through its pieces, and down again."""
    below, most = 0, 0
    for piece in pieces:
        most = max(most, below + piece.up)
        below += piece.kept
    for piece in reversed(pieces):
        below -= piece.kept
        most = max(most, below + piece.down)
    return most
