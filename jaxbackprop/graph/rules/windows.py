"""Pooling: sums and maxima over windows."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.table import rule


def _spaced(ct, x, padding, window, strides, base_dilation, window_dilation):
    """ct spread to its windows' places, padded so that windows over it end at the size of x."""
    config = []
    for n, o, (low, _), k, s, b, d in zip(
        x.shape, ct.shape, padding, window, strides, base_dilation, window_dilation, strict=True
    ):
        reach = (k - 1) * d + 1
        size, spread = (n - 1) * b + 1, (o - 1) * s + 1
        config.append((reach - low - 1, size + low - spread, s - 1))
    return lax.pad(ct, jnp.zeros((), ct.dtype), config)


@rule("reduce_window_sum")
def reduce_window_sum(
    cts,
    outs,
    x,
    *,
    window_dimensions,
    window_strides,
    padding,
    base_dilation,
    window_dilation,
):
    """Each number gets the cotangents of all the windows that hold it."""
    (ct,) = cts

    def back():
        spaced = _spaced(
            ct, x, padding, window_dimensions, window_strides, base_dilation, window_dilation
        )
        return lax.reduce_window(
            spaced,
            0.0,
            lax.add,
            window_dimensions,
            base_dilation,
            [(0, 0)] * x.ndim,
            (1,) * x.ndim,
            window_dilation,
        )

    return (back,)


def _reduce_window_extreme(reducer):
    def rule(cts, outs, x, **window):
        """To the first number of each window that equals the window's extreme."""
        (ct,) = cts
        return (lambda: _write_chosen(ct, x, reducer, Windows(**window)),)

    return rule


rule("reduce_window_max")(_reduce_window_extreme(lax.max))
rule("reduce_window_min")(_reduce_window_extreme(lax.min))


@rule("select_and_gather_add")
def select_and_gather_add(cts, outs, source, x, *, select_prim, **window):
    """From each window of source the number that stands where x has its extreme."""
    (ct,) = cts
    return (lambda: _write_chosen(ct, x, REDUCERS[select_prim.name], Windows(**window)), None)


@rule("select_and_scatter_add")
def select_and_scatter_add(cts, outs, source, x, *, select_prim, **window):
    """source, each number added where its window of x has its extreme; it reads there."""
    (ct,) = cts

    def back():
        undilated = (1,) * x.ndim
        windows = Windows(**window, base_dilation=undilated, window_dilation=undilated)
        found, padded = jnp.zeros_like(source), windows.padded(ct, 0)
        for hit, (start, ends) in _hits(x, REDUCERS[select_prim.name], windows):
            here = lax.slice(padded, start, ends, windows.window_strides)
            found = jnp.where(hit, here, found)
        return found

    return (back, None)


class Windows(NamedTuple):
    """The parameters of a window operation, by jax's names."""

    window_dimensions: Sequence[int]
    window_strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    base_dilation: Sequence[int]
    window_dilation: Sequence[int]

    def padded(self, x, value):
        """x with its holes and its rim filled."""
        config = [
            (low, high, b - 1)
            for (low, high), b in zip(self.padding, self.base_dilation, strict=True)
        ]
        return lax.pad(x, jnp.full((), value, x.dtype), config)

    def unpadded(self, padded, shape):
        """The numbers of x in an array of the size that `padded` gives."""
        start = [max(low, 0) for low, _ in self.padding]
        ends = [
            first + (n - 1) * b + 1 if n else first
            for first, n, b in zip(start, shape, self.base_dilation, strict=True)
        ]
        grown = [(max(-low, 0), max(-high, 0), 0) for low, high in self.padding]
        whole = lax.pad(padded, jnp.zeros((), padded.dtype), grown)
        return lax.slice(whole, start, ends, self.base_dilation)

    def places(self, shape):
        """Of each place in a window, the corners of the slice that holds the numbers there, for
        results of this shape."""
        for place in itertools.product(*map(range, self.window_dimensions)):
            start = [o * d for o, d in zip(place, self.window_dilation, strict=True)]
            ends = [
                o + (n - 1) * s + 1 if n else o
                for o, n, s in zip(start, shape, self.window_strides, strict=True)
            ]
            yield start, ends


REDUCERS = {"ge": lax.max, "le": lax.min}  # of a selection, by its primitive


def _hits(x, reducer, windows):
    """Place by place: where does the number there, first of its window, equal the extreme?"""
    x = in_memory(x)
    worst = jnp.asarray(-jnp.inf if reducer is lax.max else jnp.inf, x.dtype)
    out = lax.reduce_window(x, worst, reducer, *windows)
    padded = windows.padded(x, jnp.nan)  # NaN is equal to nothing
    free = jnp.ones(out.shape, bool)
    for start, ends in windows.places(out.shape):
        hit = free & (lax.slice(padded, start, ends, windows.window_strides) == out)
        free = free & ~hit
        yield hit, (start, ends)


def _write_chosen(ct, x, reducer, windows):
    """Each number of ct added where the extreme of its window of x stands first."""
    zero = jnp.zeros((), ct.dtype)
    total = jnp.zeros_like(windows.padded(x, 0))
    for hit, (start, ends) in _hits(x, reducer, windows):
        config = [
            (o, n - e, s - 1)
            for o, n, e, s in zip(start, total.shape, ends, windows.window_strides, strict=True)
        ]
        total += lax.pad(jnp.where(hit, ct, 0), zero, config)
    return windows.unpadded(total, x.shape)
