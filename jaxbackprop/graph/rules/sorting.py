"""Sorting: a permutation, which is undone on the way back."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.compared import in_memory
from jaxbackprop.graph.rules.table import explicit_sharding, placed, rule


def places_along(x, axis):
    """The place of each number along an axis; divided over devices as x is."""
    return placed(lax.broadcasted_iota(jnp.int32, x.shape, axis), jax.typeof(x))


def add_along(x, places, ct, axis):
    """An array like x, zero but for ct added at `places` along the axis."""
    index = [places if d == axis else places_along(places, d) for d in range(x.ndim)]
    home = explicit_sharding(jax.typeof(x))
    return jnp.zeros_like(x).at[tuple(index)].add(ct, out_sharding=home)


@rule("sort", zeros=False)
def sort(cts, outs, *xs, dimension, is_stable, num_keys):
    place = places_along(xs[0], dimension)
    keys = [in_memory(x) for x in xs[:num_keys]]
    *_, source = lax.sort((*keys, place), dimension=dimension, is_stable=True, num_keys=num_keys)
    return tuple(
        None if ct is None else (lambda x=x, ct=ct: add_along(x, source, ct, dimension))
        for x, ct in zip(xs, cts, strict=True)
    )


@rule("top_k", "approx_top_k")
def top_k(cts, outs, x, **params):
    (ct, *_), (_, places) = cts, outs
    axis = params.get("axis", params.get("reduction_dimension", -1)) % x.ndim
    return (lambda: add_along(x, places, ct, axis),)
