"""Stacks: a long run of hidden layers of one shape as one entry of the parameters.

The arrays of a stack have a leading axis, which forward and backward pass scan, so that program and
compile time do not grow with depth.
"""

import itertools
from collections.abc import Iterator

import jax.numpy as jnp

from jaxbackprop.network import Layer, Params
from jaxbackprop.refusals import entries_of

STACKED_RUN = 16  # shorter runs of equal layers are quicker unrolled than scanned
# Layers one by one need half of the memory, and wide ones less time; from so many on their program
# takes seconds to compile: scripts/depth_form.py.
LONG_RUN = 100


def runs_of(shapes: list, stacked: int) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of equal shapes, in order; below `stacked` one by one."""
    first = 0
    for _, run in itertools.groupby(shapes):
        length = len(list(run))
        if length >= stacked:
            yield first, length
        else:
            yield from ((first + i, 1) for i in range(length))
        first += length


def unstack(params: Params) -> Params:
    """One `Layer` a layer."""
    return tuple(
        Layer(W, b)
        for layer in entries_of(params)
        for W, b in (zip(layer.W, layer.b, strict=True) if layer.W.ndim == 3 else [layer])
    )


def stack(params: Params) -> Params:
    """Runs of 16 equal hidden layers and more as one entry each: a program that compiles sooner."""
    layers = unstack(params)
    if not layers:
        raise ValueError("params have no layers")
    entries = [
        Layer(*(jnp.stack(arrays) for arrays in zip(*layers[first : first + length], strict=True)))
        if length > 1
        else layers[first]
        for first, length in runs_of([layer.W.shape for layer in layers[:-1]], STACKED_RUN)
    ]
    return (*entries, layers[-1])
