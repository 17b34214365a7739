"""Pooling: sums and maxima over windows."""

import itertools

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import UnsupportedPrimitive, rule


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


@rule("reduce_window_max", "reduce_window_min")
def reduce_window_extreme(cts, outs, x, *, base_dilation, window_dilation, **window):
    """To the first number of each window that equals the window's extreme."""
    (ct,), (out,) = cts, outs
    _undilated("reduce_window_max' or '_min", base_dilation, window_dilation)
    return (lambda: _write_chosen(ct, x, out, **window),)


@rule("select_and_gather_add")
def select_and_gather_add(
    cts, outs, source, x, *, select_prim, base_dilation, window_dilation, **window
):
    """From each window of source the number that stands where x has its extreme."""
    (ct,) = cts
    _undilated("select_and_gather_add", base_dilation, window_dilation)
    return (lambda: _write_chosen(ct, x, _extremes(x, select_prim, window), **window), None)


@rule("select_and_scatter_add")
def select_and_scatter_add(cts, outs, source, x, *, select_prim, **window):
    """source, each number added where its window of x has its extreme; it reads there."""
    (ct,) = cts

    def back():
        found = jnp.zeros_like(source)
        rim = [(low, high, 0) for low, high in window["padding"]]
        padded = lax.pad(ct, jnp.zeros((), ct.dtype), rim)
        for hit, (start, ends) in _hits(x, _extremes(x, select_prim, window), **window):
            here = lax.slice(padded, start, ends, window["window_strides"])
            found = jnp.where(hit, here, found)
        return found

    return (back, None)


def _undilated(name, *dilations):
    if any(d != 1 for dilation in dilations for d in dilation):
        raise UnsupportedPrimitive(f"no rule for a dilated '{name}'")


def _extremes(x, select_prim, window):
    """The largest number of each window where the selection is ≥, the smallest where it is ≤."""
    worst, reducer = (-jnp.inf, lax.max) if select_prim.name == "ge" else (jnp.inf, lax.min)
    return lax.reduce_window(
        x,
        jnp.asarray(worst, x.dtype),
        reducer,
        window["window_dimensions"],
        window["window_strides"],
        window["padding"],
    )


def _hits(x, out, *, window_dimensions, window_strides, padding):
    """The windows offset by offset: where does the number there, first of its window, equal out?

    With each answer the corners of the slice of padded x that the offset reads.
    """
    rim = [(low, high, 0) for low, high in padding]
    padded = lax.pad(x, jnp.full((), jnp.nan, x.dtype), rim)  # NaN is equal to nothing
    free = jnp.ones(out.shape, bool)
    for start in itertools.product(*map(range, window_dimensions)):
        ends = [
            o + (n - 1) * s + 1 if n else o
            for o, n, s in zip(start, out.shape, window_strides, strict=True)
        ]
        hit = free & (lax.slice(padded, start, ends, window_strides) == out)
        free = free & ~hit
        yield hit, (start, ends)


def _write_chosen(ct, x, out, *, window_dimensions, window_strides, padding):
    """Each number of ct added where its window of x equals out first."""
    rim = [(low, high, 0) for low, high in padding]
    sizes = [n + low + high for n, (low, high) in zip(x.shape, padding, strict=True)]
    zero = jnp.zeros((), ct.dtype)
    total = jnp.zeros(sizes, ct.dtype)
    hits = _hits(
        x,
        out,
        window_dimensions=window_dimensions,
        window_strides=window_strides,
        padding=padding,
    )
    for hit, (start, ends) in hits:
        config = [
            (o, n - e, s - 1) for o, n, e, s in zip(start, sizes, ends, window_strides, strict=True)
        ]
        total += lax.pad(jnp.where(hit, ct, 0), zero, config)
    return lax.pad(total, zero, [(-low, -high, 0) for low, high, _ in rim])
