"""The fewest evaluations of a chain of unequal layers in a number of bytes.

The dynamic programme over (from, to, bytes) of Beaumont, Eyraud-Dubois, Herrmann, Joly and
Shilova, "Optimal checkpointing for heterogeneous chains" (2019), for all bytes at once: of what is
possible for a part of the chain those points stay that no other beats in both bytes and advances.
Parts that are alike are solved once, so that a run of equal layers costs little.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

from jaxbackprop.checkpoint.memory import Chain
from jaxbackprop.checkpoint.schedule import Schedule, visits


class Point(NamedTuple):
    """What a chain can be had for: bytes at its peak, advances, the middle state kept."""

    bytes: int
    advances: int
    middle: int


@functools.lru_cache(maxsize=2**16)
def frontier(chain: Chain, again: bool = False) -> tuple[Point, ...]:
    """The best points of a chain, by rising bytes.

    From its input, which is kept, with the error of its last layer: keep some middle state, finish
    what is above it, then what is below. `again`: the way up has been gone before.
    """
    d = len(chain.weights)
    if d == 1:
        return (Point(chain.step(1), 0, 0),)
    found, way = [], 0
    for middle in range(1, d):
        way = max(way, chain.advance(0, middle, d, again))
        above, below = frontier(chain.part(middle, d)), frontier(chain.part(0, middle), True)
        for most, advances in _one_after_the_other(chain.states[middle], above, below):
            found.append(Point(max(way, most), middle + advances, middle))
    best: list[Point] = []
    for point in sorted(found):
        if not best or point.advances < best[-1].advances:
            best.append(point)
    return tuple(best)


def _one_after_the_other(
    kept: int, above: tuple[Point, ...], below: tuple[Point, ...]
) -> Iterator[tuple[int, int]]:
    """(the greater peak, the sum of the advances) of both parts, as the room for them rises."""
    i = j = 0
    while True:
        yield max(kept + above[i].bytes, below[j].bytes), above[i].advances + below[j].advances
        if i + 1 < len(above) and (
            j + 1 == len(below) or kept + above[i + 1].bytes < below[j + 1].bytes
        ):
            i += 1
        elif j + 1 < len(below):
            j += 1
        else:
            return


def unequal(chain: Chain, room: int) -> Schedule | None:
    """The schedule with the fewest evaluations in `room` bytes; None where there is none."""
    if room < frontier(chain)[0].bytes:
        return None

    def split(low: int, high: int, room: int, again: bool) -> int | None:
        if high - low == 1:
            return None
        points = frontier(chain.part(low, high), again)
        return low + [point for point in points if point.bytes <= room][-1].middle

    return visits(len(chain.weights), room, split, chain.states.__getitem__)
