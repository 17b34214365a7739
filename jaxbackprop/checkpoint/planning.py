"""The plan: what is kept when, what it costs, what it needs; the best one for a number of bytes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from jaxbackprop.checkpoint.descriptions import number_of_bytes, whole_number
from jaxbackprop.checkpoint.memory import Chain, Memory, peak, plain_memory, stack_memory
from jaxbackprop.checkpoint.run import depths_of, pieces, run
from jaxbackprop.checkpoint.schedule import (
    Schedule,
    advances,
    binomial,
    segments,
    slots,
    steps,
    times,
)
from jaxbackprop.checkpoint.unequal import frontier, unequal
from jaxbackprop.initialisation import init
from jaxbackprop.network import Layer, Network, Params, widths

MIB = 2**20
LONG_CHAIN = 128  # of longer ones the optimum for unequal layers takes minutes
LAYER = jax.tree.structure(Layer(0, 0))  # pyright: ignore


class Piece(NamedTuple):
    """A stack, or a run of plain layers: `layers` of them after the first `before` ones.

    A schedule of it has `length` visits: one more than it has layers where another piece follows,
    whose input is its last state.
    """

    before: int
    layers: int
    stacked: bool
    length: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a plan depends on: the network, how its parameters are stacked, batch and dtype."""

    network: Network
    depths: tuple[int, ...]
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"({widths(self.network.sizes)}), batch {self.batch}, {self.dtype}"

    @property
    def pieces(self) -> list[Piece]:
        counts = [depth or 1 for depth in self.depths]
        found = []
        for first, end in pieces(self.depths):
            before, layers = sum(counts[:first]), sum(counts[first:end])
            follows = before + layers < self.network.depth
            found.append(Piece(before, layers, self.depths[first] > 0, layers + follows))
        return found

    def chain(self, piece: Piece) -> Chain:
        """The bytes of its states and weights."""
        n = self.network.sizes[piece.before : piece.before + piece.layers + 1]
        item = jnp.dtype(self.dtype).itemsize
        return Chain(
            tuple(width * self.batch * item for width in n),
            tuple(width * before * item for before, width in itertools.pairwise(n)),
            at_x=piece.before == 0,
            last=piece.length == piece.layers,
            both=not self.network.sigma(0).from_a,
        )

    def memory(self, piece: Piece, schedule: Schedule) -> Memory:
        """What the piece needs under a schedule."""
        if piece.stacked:
            return self.stack(piece, slots(schedule))
        return plain_memory(self.chain(piece), schedule)

    def stack(self, piece: Piece, slots: int) -> Memory:
        """What a stack needs with so many kept states."""
        chain, item = self.chain(piece), jnp.dtype(self.dtype).itemsize
        bias = self.network.sizes[piece.before + 1] * item
        return stack_memory(
            chain.states[-1], chain.weights[-1], bias, slots, piece.length, chain.both
        )

    @property
    def params(self) -> Params:
        """Parameters of this shape, without their numbers."""
        found, l = [], 0
        for depth in self.depths:
            lead, l = (depth,) * bool(depth), l + (depth or 1)
            p, n = self.network.sizes[l - 1 : l + 1]
            arrays = (jax.ShapeDtypeStruct((*lead, n, m), self.dtype) for m in (p, 1))
            found.append(jax.tree.unflatten(LAYER, arrays))
        return tuple(found)


def shape_of(network: Network, params: Params, batch: int) -> Shape:
    """The shape of parameters at hand."""
    return Shape(network, depths_of(params), batch, str(params[0].W.dtype))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A schedule for each piece of a network, with its cost.

    Printing it compiles the gradient, to show the bytes that were predicted beside those that the
    program reports: it takes seconds.
    """

    shape: Shape
    schedules: tuple[Schedule, ...]

    @property
    def evaluations(self) -> int:
        """Layer evaluations, on the way up and again; at least one a layer."""
        return 1 + sum(map(advances, self.schedules))

    @property
    def evaluated(self) -> tuple[int, ...]:
        """How often each layer is evaluated, from the first."""
        pairs = zip(self.shape.pieces, self.schedules, strict=True)
        found = [n for piece, schedule in pairs for n in times(schedule)[: piece.layers]]
        return (*found[:-1], 1)  # the output layer follows the schedules

    @property
    def factor(self) -> float:
        """Layer evaluations over those of one forward pass."""
        return self.evaluations / self.shape.network.depth

    @property
    def bytes(self) -> int:
        """The predicted peak of temporary memory."""
        pairs = zip(self.shape.pieces, self.schedules, strict=True)
        return peak([self.shape.memory(piece, schedule) for piece, schedule in pairs])

    @functools.cached_property
    def compiled_bytes(self) -> int:
        """The temporary memory that the compiled gradient reports."""
        shape = self.shape
        x, y = (
            jax.ShapeDtypeStruct((shape.network.sizes[l], shape.batch), shape.dtype)
            for l in (0, -1)
        )
        gradient = jax.jit(run, static_argnums=(0, 1))
        program = gradient.lower(shape.network, self.schedules, shape.params, x, y).compile()
        return cast(Any, program.memory_analysis()).temp_size_in_bytes

    def __str__(self) -> str:
        shape, lines = self.shape, []
        lines.append(f"{shape}")
        for piece, schedule in zip(shape.pieces, self.schedules, strict=True):
            first, last = piece.before + 1, piece.before + piece.layers
            which = f"layers {first} to {last}" if piece.layers > 1 else f"layer {first}"
            again = advances(schedule) - len(schedule) + 1
            kept = ", ".join(str(piece.before + state) for state in schedule[0].keep)
            lines.append(
                f"{which}: up to {slots(schedule)} activations kept, {again} layers evaluated again"
            )
            if schedule[0].keep:
                lines.append(f"  on the way up: of layers {_shortened(kept)}")
        lines.append(
            f"{self.evaluations} layer evaluations, {self.factor:.2f} forward passes; "
            f"temporary memory {self.bytes / MIB:.2f} MiB predicted, "
            f"{self.compiled_bytes / MIB:.2f} MiB compiled for {jax.default_backend()}"
        )
        return "\n".join(lines)


def _shortened(text: str, width: int = 70) -> str:
    return text if len(text) <= width else f"{text[: width - 20]} … {text[-16:]}"


def every_plan(shape: Shape, k: int) -> Plan:
    """Every k-th activation of each piece kept, and its input."""
    return Plan(shape, tuple(segments(piece.length, k) for piece in shape.pieces))


class Option(NamedTuple):
    """What a piece can be had for: its memory, its advances, and how to get the schedule."""

    memory: Memory
    advances: int
    schedule: Callable[[], Schedule]


def _options(shape: Shape, piece: Piece) -> list[Option]:
    """The schedules worth considering: binomial ones for a stack, the frontier for plain layers."""
    chain, d = shape.chain(piece), piece.length
    if piece.stacked:
        return [
            Option(
                shape.stack(piece, min(m, d) - 1),
                steps(d, m),
                functools.partial(binomial, d, m),
            )
            for m in range(1, d + 1)
        ]
    found = [segments(d, d)]
    if 1 < piece.layers <= LONG_CHAIN and d == piece.layers:
        found += [plan for point in frontier(chain) if (plan := unequal(chain, point.bytes))]
    elif piece.layers > 1:
        found += [binomial(d, m) for m in range(1, d + 1)]
    return [
        Option(
            shape.memory(piece, schedule), advances(schedule), lambda schedule=schedule: schedule
        )
        for schedule in found
    ]


class _Partial(NamedTuple):
    """The choices for the first pieces: what they keep, and what they cost."""

    kept: int
    advances: int
    chosen: tuple[Option, ...]


def best(shape: Shape, room: int) -> Plan | None:
    """The fewest layer evaluations in `room` predicted bytes; None where there is none."""
    ways = [_Partial(0, 0, ())]
    for piece in shape.pieces:
        longer = [
            _Partial(
                way.kept + option.memory.kept, way.advances + option.advances, (*way.chosen, option)
            )
            for way in ways
            for option in _options(shape, piece)
            if way.kept + max(option.memory.up, option.memory.down) <= room
        ]
        ways = []
        for way in sorted(longer, key=lambda way: (way.kept, way.advances)):
            if not ways or way.advances < ways[-1].advances:
                ways.append(way)
    if not ways:
        return None
    return Plan(shape, tuple(option.schedule() for option in ways[-1].chosen))


@functools.lru_cache(maxsize=64)
def least(shape: Shape) -> Plan:
    """The plan that is predicted to need the fewest bytes of all."""
    low, high = 0, every_plan(shape, shape.network.depth).bytes
    found = best(shape, high)
    while high - low > 1:
        middle = (low + high) // 2
        smaller = best(shape, middle)
        found, low, high = (smaller, low, middle) if smaller else (found, middle, high)
    return cast(Plan, found)


@functools.lru_cache(maxsize=64)
def fitting(shape: Shape, room: int) -> Plan | None:
    """`best`, held to its word: its program is compiled, and less is planned until that fits.

    What a compiler adds to the arrays that a plan counts is its own affair, and changes with it.
    """
    found = best(shape, room)
    while found and (over := found.compiled_bytes - room) > 0:
        floor, less = least(shape).bytes, found.bytes - max(over, found.bytes // 8)
        found = best(shape, max(less, floor)) if found.bytes > floor else None
    return found


def best_plan(shape: Shape, room: int) -> Plan:
    """`fitting`, or a ValueError that names the least number of bytes that has a plan."""
    found = fitting(shape, room)
    if found is not None:
        return found
    smallest = least(shape)
    needed = max(smallest.bytes, smallest.compiled_bytes)
    raise ValueError(
        f"no plan for {shape} fits {room} bytes: the least that one needs is {needed} "
        f"({needed / MIB:.2f} MiB)"
    )


def plan(network: Network, batch: int, dtype: DTypeLike, bytes: int | str) -> Plan:
    """The exact gradient with the fewest layer evaluations in so many bytes of temporary memory.

    For parameters as `init` returns them. The bytes are those beside the parameters, x, y and the
    gradients. In a stack the schedule is binomial (Griewank and Walther, 2000), in plain layers the
    dynamic programme's (Beaumont et al., 2019).

    Raises ValueError where no plan is small enough, and names the least number of bytes that is.
    """
    if whole_number(batch, f"batch is {batch!r}, expected a whole number") < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    params = jax.eval_shape(lambda: init(network, jax.random.key(0), dtype))
    return best_plan(shape_of(network, params, batch), number_of_bytes(bytes))
