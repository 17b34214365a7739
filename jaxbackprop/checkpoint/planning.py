"""The plan: what is kept when, what it costs, what it needs; the best one for a number of bytes."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from jaxbackprop.checkpoint.memory import Chain, Memory, peak, plain_memory, stack_memory
from jaxbackprop.checkpoint.run import depths_of, pieces
from jaxbackprop.checkpoint.schedule import (
    Schedule,
    advances,
)
from jaxbackprop.network import Network, Params, init

MIB = 2**20


class Shape(NamedTuple):
    """What a plan depends on: the network, how its parameters are stacked, batch and dtype."""

    network: Network
    depths: tuple[int, ...]
    batch: int
    dtype: str

    @property
    def chains(self) -> list[tuple[int, int, bool]]:
        """(first layer, layers, stacked) of each piece."""
        counts = [depth or 1 for depth in self.depths]
        return [
            (sum(counts[:first]), sum(counts[first:end]), self.depths[first] > 0)
            for first, end in pieces(self.depths)
        ]

    @property
    def lengths(self) -> list[int]:
        """How many visits a schedule of each piece has."""
        return [l + n + (l + n < self.network.depth) - l for l, n, _ in self.chains]

    def chain(self, first: int, layers: int) -> Chain:
        """The bytes of a run of layers after `first`."""
        n = self.network.sizes[first : first + layers + 1]
        item = jnp.dtype(self.dtype).itemsize
        return Chain(
            tuple(width * self.batch * item for width in n),
            tuple(width * before * item for before, width in itertools.pairwise(n)),
            at_x=first == 0,
            last=first + layers == self.network.depth,
            both=not self.network.sigma(0).from_a,
        )

    def memory(self, schedules: Sequence[Schedule]) -> list[Memory]:
        """The bytes of each piece under its schedule."""
        found = []
        for (first, layers, stacked), schedule in zip(self.chains, schedules, strict=True):
            chain = self.chain(first, layers)
            if stacked:
                both = chain.both
                found.append(stack_memory(chain.states[-1], chain.weights[-1], schedule, both))
            else:
                found.append(plain_memory(chain, schedule))
        return found


def shape_of(network: Network, params: Params, batch: int) -> Shape:
    """The shape of parameters at hand."""
    return Shape(network, depths_of(params), batch, str(params[0].W.dtype))


def shape_for(network: Network, batch: int, dtype: DTypeLike) -> Shape:
    """The shape of the parameters that `init` returns."""
    params = jax.eval_shape(lambda: init(network, jax.random.key(0), dtype))
    return shape_of(network, params, batch)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A schedule for each piece of a network, with its cost. Printing it tells all."""

    shape: Shape
    schedules: tuple[Schedule, ...]

    @property
    def evaluations(self) -> int:
        """Layer evaluations, on the way up and again; at least one a layer."""
        return 1 + sum(map(advances, self.schedules))

    @property
    def factor(self) -> float:
        """Layer evaluations over those of one forward pass."""
        return self.evaluations / self.shape.network.depth

    @property
    def bytes(self) -> int:
        """The predicted peak of temporary memory."""
        return peak(self.shape.memory(self.schedules))
