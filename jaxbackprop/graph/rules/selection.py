"""Local gradients of what chooses one of several numbers, entry by entry."""

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.complex_numbers import is_complex
from jaxbackprop.graph.rules.table import rule


def _extreme(extreme, first):
    """The rule of max or min: the whole to the one chosen, half to each at a tie.

    first(x, y): is x the one? Complex numbers, which are in the order of a dictionary, are compared
    with the output: where one is NaN, XLA may have chosen either.
    """

    def rule(cts, outs, x, y):
        (ct,) = cts
        x, y = jnp.broadcast_arrays(x, y)

        if is_complex(x):
            x, y = in_memory(x), in_memory(y)
            out = extreme(x, y)

        def share(mine, other):
            if is_complex(mine):
                chosen, tie = mine == out, (mine == out) & (other == out)
                return jnp.where(tie, 0.5 * ct, jnp.where(chosen, ct, 0 * ct))
            return jnp.where(first(mine, other), ct, jnp.where(mine == other, ct * 0.5, 0 * ct))

        return (lambda: share(x, y), lambda: share(y, x))

    return rule


rule("max")(_extreme(lax.max, lambda x, y: x > y))
rule("min")(_extreme(lax.min, lambda x, y: x < y))


@rule("clamp")
def clamp(cts, outs, low, x, high):
    """To x strictly between the bounds, and to the bound where it is beyond, as in JAX."""
    (ct,) = cts
    none = jnp.zeros_like(ct)
    return (
        lambda: jnp.where((x < low) & (low < high), ct, none),
        lambda: jnp.where((x > low) & (x < high), ct, none),
        lambda: jnp.where(x > high, ct, none),
    )


@rule("select_n")
def select_n(cts, outs, which, *cases):
    """To the case that was taken, and exactly zero to the others."""
    (ct,) = cts
    none = jnp.zeros_like(ct)

    def to(i):
        chosen = [none] * len(cases)
        chosen[i] = ct
        return lambda: lax.select_n(which, *chosen)

    return (None, *(to(i) for i in range(len(cases))))
