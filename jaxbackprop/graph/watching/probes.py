"""A probe: the identity, with a second, small input whose gradient is what one wants to know of the
gradient that passes.

A backward pass has no other outlet: what it computes are gradients of inputs. So the statistics of
a gradient leave it as the gradient of an input that nothing depends on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact, Real

from jaxbackprop.checkpoint.ties import array_of_its_own
from jaxbackprop.graph.rules.table import wide
from jaxbackprop.graph.watching.rewriting import Ears, Visit
from jaxbackprop.graph.watching.sites import PRODUCTS, Site

Statistics = Callable[[Any], Any]  # of an array, a pytree of real numbers


class NormMax(NamedTuple):
    """‖x‖ and the greatest |xᵢ|: NaN where any entry is, Inf where any is and none is NaN."""

    norm: Real[Array, "*steps"]
    max: Real[Array, "*steps"]


def norm_max(x: Inexact[Array, "..."]) -> NormMax:
    """In float32 at least. The squares are those of a multiple of x where they would be no such
    numbers, so that the norm of 1e-30 is not 0: a power of two, which rounds nothing.

    Two reductions of one array, each alone, are several times faster on a CPU than both in one; and
    nothing but x is read, for what both of them read would be written first.
    """
    x = x.astype(wide(x.dtype))
    largest = jnp.max(jnp.abs(x)) if x.size else jnp.zeros((), x.real.dtype)
    far = jnp.finfo(largest.dtype).maxexp
    small, large = (largest < 2.0 ** (-0.4 * far)), (largest > 2.0 ** (0.3 * far))
    factor = jnp.where(small, 2.0 ** (0.75 * far), jnp.where(large, 2.0 ** (-0.75 * far), 1.0))
    factor = factor.astype(largest.dtype)
    squares = jnp.square(jnp.abs(x * factor))
    return NormMax(jnp.sqrt(jnp.sum(squares)) / factor, largest)


def ears(chosen: Sequence[Site], statistics: Statistics) -> Ears:
    """Zeros in the form of the statistics, for each site that has a gradient, in each step."""

    def silent(site):
        aval = jax.ShapeDtypeStruct(site.aval.shape, site.aval.dtype)
        kinds = jax.eval_shape(statistics, aval)
        return jax.tree.map(lambda kind: jnp.zeros((*site.steps, *kind.shape), kind.dtype), kinds)

    return {n: silent(site) for n, site in enumerate(chosen) if site.active}


def taking(statistics: Statistics) -> Callable[[Visit], tuple[list, dict[int, Any]]]:
    """At a site: the statistics of the value, and a probe for those of its gradient."""

    def visitor(visit: Visit) -> tuple[list, dict[int, Any]]:
        outputs, seen = visit.run(), {}
        for k, n in visit.numbers.items():
            # Without the stop a loop would store what the statistics' own gradient needs; without
            # an order XLA may go on first, and keep what it computes the value of once more.
            seen[n] = statistics(lax.stop_gradient(outputs[k]))
            if visit.equation.primitive.name not in PRODUCTS:  # which stand in memory anyhow
                for statistic in jax.tree.leaves(seen[n]):
                    outputs[k] = array_of_its_own(outputs[k], statistic)
            if n in visit.ears:
                outputs[k] = probe(outputs[k], visit.ears[n], statistics)
        return outputs, seen

    return visitor


def probe(x: Inexact[Array, "..."], ear: Any, statistics: Statistics) -> Inexact[Array, "..."]:
    """x itself. Its gradient passes unchanged; the gradient of `ear` is the statistics of it."""

    @jax.custom_vjp
    def identity(x, ear):
        return x

    identity.defvjp(lambda x, ear: (x, None), lambda _, ct: (ct, statistics(ct)))
    return identity(x, ear)
