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
def reduce_window_extreme(
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
    """To the first number of each window that equals the window's extreme.

    The windows are walked offset by offset: each offset reads one number of every window.
    """
    (ct,), (out,) = cts, outs
    if any(d != 1 for d in (*base_dilation, *window_dilation)):
        raise UnsupportedPrimitive("no rule for a dilated 'reduce_window_max' or '_min'")

    def back():
        inside = [(low, high, 0) for low, high in padding]
        padded = lax.pad(x, jnp.full((), jnp.nan, x.dtype), inside)  # equal to nothing
        total, free = jnp.zeros_like(padded), jnp.ones(out.shape, bool)
        for offset in itertools.product(*map(range, window_dimensions)):
            ends = [
                o + (n - 1) * s + 1
                for o, n, s in zip(offset, out.shape, window_strides, strict=True)
            ]
            hit = free & (lax.slice(padded, offset, ends, window_strides) == out)
            free = free & ~hit
            config = [
                (o, n - e, s - 1)
                for o, n, e, s in zip(offset, padded.shape, ends, window_strides, strict=True)
            ]
            total += lax.pad(jnp.where(hit, ct, 0), jnp.zeros((), ct.dtype), config)
        outside = [(-low, -high, 0) for low, high in padding]
        return lax.pad(total, jnp.zeros((), ct.dtype), outside)

    return (back,)
