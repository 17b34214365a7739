"""Cumulative operations: each output depends on the inputs up to it."""

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.sorting import add_along, places_along
from jaxbackprop.graph.rules.table import rule


@rule("cumsum")
def cumsum(cts, outs, x, *, axis, reverse):
    """xⱼ is in every sum from j on: the sum of their cotangents, taken from the other end."""
    (ct,) = cts
    return (lambda: lax.cumsum(ct, axis, reverse=not reverse),)


@rule("cumprod")
def cumprod(cts, outs, x, *, axis, reverse):
    """With P the product before j: ∂/∂xⱼ = Pⱼ Sⱼ,  Sⱼ = ctⱼ + xⱼ₊₁ Sⱼ₊₁. No division by x."""
    (ct,) = cts

    def back():
        if x.size == 0:
            return x
        x_, ct_ = (lax.rev(x, [axis]), lax.rev(ct, [axis])) if reverse else (x, ct)
        n = x.shape[axis]
        one = jnp.ones_like(lax.slice_in_dim(x_, 0, 1, axis=axis))
        inner = lax.slice_in_dim(x_, 0, n - 1, axis=axis)
        before = lax.cumprod(lax.concatenate([one, inner], axis), axis)
        following = lax.concatenate([lax.slice_in_dim(x_, 1, n, axis=axis), one], axis)

        def join(later, earlier):
            return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

        _, s = lax.associative_scan(join, (following, ct_), axis=axis, reverse=True)
        result = before * s
        return lax.rev(result, [axis]) if reverse else result

    return (back,)


@rule("cumlogsumexp")
def cumlogsumexp(cts, outs, x, *, axis, reverse):
    """exp(xⱼ − outⱼ) Sⱼ,  Sⱼ = ctⱼ + exp(outⱼ − outⱼ₊₁) Sⱼ₊₁. No exponent is above 0."""
    (ct,), (out,) = cts, outs

    def back():
        following = jnp.roll(out, 1 if reverse else -1, axis)
        decay = lax.exp(jnp.minimum(out - following, 0))  # the last one meets no S

        def join(later, earlier):
            return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

        _, s = lax.associative_scan(join, (decay, ct), axis=axis, reverse=not reverse)
        return lax.exp(x - out) * s

    return (back,)


@rule("cummax", "cummin")
def cumextreme(cts, outs, x, *, axis, reverse):
    """To the number that holds the record: the first of equal ones."""
    (ct,), (out,) = cts, outs

    def back():
        place = places_along(x, axis)
        n = x.shape[axis]
        order = (n - 1 - place) if reverse else place
        held = in_memory(out)
        shifted = jnp.roll(held, -1 if reverse else 1, axis)
        record = (order == 0) | (held != shifted)
        holder = lax.cummax(jnp.where(record, order, -1), axis, reverse=reverse)
        holder = (n - 1 - holder) if reverse else holder
        return add_along(x, holder, ct, axis)

    return (back,)
