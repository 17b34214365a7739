"""A schedule as integers, which a loop reads: one program for stacks of any number of layers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxbackprop.checkpoint.schedule import Schedule, slots


class Tables(NamedTuple):
    """For each visit its kept state's slot, or −1 for the input, and its
    range of advances; for each advance its layer, and the slot that keeps its state, or −1."""

    slot: Int[np.ndarray, " visits"]
    begin: Int[np.ndarray, " visits"]
    end: Int[np.ndarray, " visits"]
    layer: Int[np.ndarray, " advances"]
    keep: Int[np.ndarray, " advances"]


def tables_of(schedule: Schedule) -> Tables:
    """A slot is free again once the walk is below the state that it kept."""
    d, free = len(schedule), list(range(slots(schedule)))[::-1]
    where: dict[int, int] = {0: -1}
    visits, advances = [], []
    for state, visit in zip(range(d - 1, -1, -1), schedule, strict=True):
        for over in [s for s in where if s > state]:
            free.append(where.pop(over))
        begin = len(advances)
        for s in range(visit.start, state):
            if s + 1 in visit.keep:
                where[s + 1] = free.pop()
            advances.append((s, where[s + 1] if s + 1 in visit.keep else -1))
        visits.append((where[visit.start], begin, len(advances)))
    columns = (*zip(*visits, strict=True), *zip(*advances, strict=True))
    return Tables(*(np.array(column, np.int32) for column in columns))
