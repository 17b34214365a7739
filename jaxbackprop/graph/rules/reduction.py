"""Reductions: one output depends on many inputs, so its cotangent goes to each of them."""

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.table import rule, undivided


def spread(reduced, x, axes):
    """Broadcast a reduced array over the axes that were reduced."""
    kept = [d for d in range(x.ndim) if d not in axes]
    return lax.broadcast_in_dim(reduced, x.shape, kept)


@rule("reduce_sum")
def reduce_sum(cts, outs, x, *, axes, **params):
    (ct,) = cts
    return (lambda: spread(ct, x, axes),)


def _reduce_extreme(reduce):
    def rule(cts, outs, x, *, axes, **params):
        """To the largest (smallest) number; to k equal ones 1/k each."""
        (ct,) = cts

        def back():
            held = in_memory(x)
            chosen = (held == spread(reduce(held, axes, **params), x, axes)).astype(ct.dtype)
            count = jnp.sum(chosen, axis=axes)
            return chosen * spread(ct / count, x, axes)

        return (back,)

    return rule


rule("reduce_max")(_reduce_extreme(lax.reduce_max))
rule("reduce_min")(_reduce_extreme(lax.reduce_min))


@rule("reduce_prod")
def reduce_prod(cts, outs, x, *, axes, **params):
    """The product of all the others, from both sides: dividing by x would fail at 0."""
    (ct,) = cts

    def back():
        if x.size == 0:
            return x
        kept = [d for d in range(x.ndim) if d not in axes]
        order = (*kept, *axes)
        rows = lax.transpose(undivided(x, axes), order).reshape(*(x.shape[d] for d in kept), -1)
        one = jnp.ones_like(rows[..., :1])
        axis = rows.ndim - 1
        before = lax.cumprod(jnp.concatenate([one, rows[..., :-1]], axis), axis)
        after = lax.cumprod(jnp.concatenate([rows[..., 1:], one], axis), axis, reverse=True)
        others = (before * after).reshape([x.shape[d] for d in order])
        inverse = sorted(range(x.ndim), key=order.__getitem__)
        return lax.transpose(others, inverse) * spread(ct, x, axes)

    return (back,)
