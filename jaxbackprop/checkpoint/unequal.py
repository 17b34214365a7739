"""The fewest evaluations of a chain of unequal layers in a number of bytes.

The dynamic programme over (from, to, bytes) of Beaumont, Eyraud-Dubois, Herrmann, Joly and
Shilova, "Optimal checkpointing for heterogeneous chains" (2019), for all bytes at once: of what is
possible for a pair (from, to) those stay that no other beats in both bytes and advances.
"""

import functools
from typing import NamedTuple

from jaxbackprop.checkpoint.memory import Chain
from jaxbackprop.checkpoint.schedule import Schedule, visits


class Point(NamedTuple):
    """What a part of a chain can be had for: bytes at its peak, advances, the middle state kept."""

    bytes: int
    advances: int
    middle: int


Table = dict[tuple[int, int, bool], tuple[Point, ...]]


@functools.lru_cache(maxsize=64)
def frontier(chain: Chain) -> Table:
    """The best points for all (low, high, again), by rising bytes.

    From the kept state `low`, with the error of layer `high`: keep some middle state, finish what
    is above it, then what is below. `again`: the first way up has been gone before.
    """
    d = len(chain.weights)
    table: Table = {
        (s, s + 1, again): (Point(chain.step(s + 1), 0, s),)
        for s in range(d)
        for again in (False, True)
    }
    for length in range(2, d + 1):
        for low in range(d - length + 1):
            for again in (False, True):
                table[low, low + length, again] = _points(chain, table, low, low + length, again)
    return table


def _points(chain: Chain, table: Table, low: int, high: int, again: bool) -> tuple[Point, ...]:
    found, way = [], 0
    for middle in range(low + 1, high):
        way = max(way, chain.advance(low, middle, high, again))
        for above in table[middle, high, False]:
            for below in table[low, middle, True]:
                most = max(way, chain.states[middle] + above.bytes, below.bytes)
                advances = middle - low + above.advances + below.advances
                found.append(Point(most, advances, middle))
    best: list[Point] = []
    for point in sorted(found):
        if not best or point.advances < best[-1].advances:
            best.append(point)
    return tuple(best)


def unequal(chain: Chain, room: int) -> Schedule | None:
    """The schedule with the fewest evaluations in `room` bytes; None where there is none."""
    table, d = frontier(chain), len(chain.weights)
    if room < table[0, d, False][0].bytes:
        return None

    def split(low: int, high: int, room: int, again: bool) -> int | None:
        fits = [point for point in table[low, high, again] if point.bytes <= room]
        return None if high - low == 1 else fits[-1].middle

    return visits(d, room, split, chain.states.__getitem__)
