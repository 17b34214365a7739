"""What is computed from gradients that are left unformed.

A norm comes from the inner products of all pairs of terms, a weighted mean from each product with
the examples summed. Where an inner product costs more than the gradient itself, that is formed, a
few examples at a time, so that no more is held at once than the factors are.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.api import vjp
from jaxbackprop.graph.rules.table import wide
from jaxbackprop.graph.unformed.leaves import Leaf, Term, each, sum_over
from jaxbackprop.graph.unformed.pairs import (
    Pair,
    Rows,
    cost,
    formed,
    inner,
    inner_cost,
    inner_with,
    meet_in,
    squared,
)
from jaxbackprop.graph.unformed.sites import KINDS, Kind, Site
from jaxbackprop.graph.unformed.views import apart, is_whole, same_place

FEW = 8  # rows that are summed in one pass over all of them
CLOSE = 2**20  # numbers: 4 MiB of float32


def squared_norms(leaf: Leaf) -> jax.Array:
    """‖gᵢ‖² of each example, in float32 at least."""
    if by_inner_products([term.site for term in leaf.terms], leaf.dense is not None, leaf.shared):
        return each(_by_inner, leaf, leaf.m)
    return each(lambda one: _square_sum(_form(one)), leaf, _at_once(leaf))


def formed_each(leaf: Leaf) -> jax.Array:
    """gᵢ of each example, with a first axis of m."""
    at_once = _close(leaf) if any(map(_patches, leaf.terms)) else leaf.m
    return each(lambda one: _form(one).astype(one.like.dtype), leaf, at_once)


def formed_once(leaf: Leaf) -> Leaf:
    """For norms and a mean: the gradients formed, if that saves work and takes little room.

    The mean forms them in any case, of all examples at once; the inner products come on top.
    """
    counts = multiplications([term.site for term in leaf.terms], False)
    cheap = counts is not None and counts[0] <= counts[1] / 2
    room = _held(leaf) * (2 if _close(leaf) == leaf.m else 1)
    if not leaf.terms or cheap or leaf.m * math.prod(leaf.like.shape) > room:
        return leaf
    return leaf._replace(terms=[], dense=each(_form, leaf, _close(leaf)), shared=False)


def total(leaf: Leaf, weights: jax.Array | None = None) -> jax.Array:
    """Σ wᵢ gᵢ, by default Σ gᵢ, in float32 at least.

    An example of weight zero is left out, whatever its numbers.
    """
    found = jnp.zeros(leaf.like.shape, wide(leaf.like.dtype))
    for term in leaf.terms:
        site, kept, ct = term
        if weights is not None:
            kept, ct = _chosen(kept, weights, term.axis), _weighted(ct, weights, term.axis)
        product = _kind(site).total(site, (*site.view.owned, False), kept, ct)
        found += _to_parameter(leaf.like, site, product)
    if leaf.dense is not None and leaf.shared:
        found += leaf.dense * (leaf.m if weights is None else jnp.sum(weights))
    elif leaf.dense is not None:
        dense = leaf.dense.astype(found.dtype)
        weights = jnp.ones(leaf.m) if weights is None else weights
        found += _sum_of_rows(weights.astype(found.dtype), dense)
    return found


def total_squares(leaf: Leaf) -> jax.Array:
    """Σ gᵢ² of each number, in float32 at least."""
    if leaf.dense is None and len(leaf.terms) == 1:
        ((site, kept, ct),) = leaf.terms
        pair = _kind(site).pair(site, (*site.view.owned, False), kept, ct)
        squares = squared(pair, ("loop", len(site.view.steps)))
        if squares is not None:
            return _to_parameter(leaf.like, site, formed(squares))
    if leaf.dense is not None and not leaf.terms:
        return leaf.m * _square(leaf.dense) if leaf.shared else jnp.sum(_square(leaf.dense), 0)
    return sum_over(lambda one: _square(_form(one)), leaf, _at_once(leaf))


def by_inner_products(sites: Sequence[Site], dense: bool = False, shared: bool = False) -> bool:
    """Are the inner products of a leaf's terms cheaper than its gradient, of one example?"""
    counts = multiplications(sites, dense and shared)
    return counts is not None and not (dense and not shared) and counts[0] <= counts[1]


def multiplications(sites: Sequence[Site], dense: bool) -> tuple[int, int] | None:
    """(for the inner products of all pairs of terms, for forming them), of one example.

    None where two of them read some numbers in common, but not all: such products are formed.
    """
    for a, b in itertools.combinations(sites, 2):
        if not (same_place(a.view, b.view) or apart(a.view, b.view)):
            return None
    counts = []

    def reckon(factors):
        pairs = [
            _kind(s).pair(s, s.view.owned, *both) for s, both in zip(sites, factors, strict=True)
        ]
        placed = zip(pairs, sites, strict=True)
        together = [
            (a, b)
            for (a, at), (b, bt) in itertools.combinations_with_replacement(placed, 2)
            if not apart(at.view, bt.view)
        ]
        if all(meet_in(a, b) for a, b in together):
            forming = sum(map(cost, pairs))
            counts.append(sum(inner_cost(a, b) for a, b in together) + dense * forming)
            counts.append(forming + sum(2 * math.prod(pair.shape) for pair in pairs))

    jax.eval_shape(reckon, [factor_types(site) for site in sites])
    return tuple(counts) if counts else None


def factor_types(site: Site) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """What is kept of one example at a site, and the cotangent there: shapes and dtypes."""
    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in site.equation.invars]
    kept = _kind(site).kept(site.equation, types, site.operand)
    ct = site.equation.outvars[0].aval
    kept, ct = (jax.ShapeDtypeStruct((*site.view.steps, *x.shape), x.dtype) for x in (kept, ct))
    return kept, ct


def _kind(site: Site) -> Kind:
    return KINDS[site.equation.primitive.name]


def _pairs(leaf: Leaf) -> list[Pair]:
    """The terms of one example."""
    return [_kind(site).pair(site, site.view.owned, kept, ct) for site, kept, ct in leaf.terms]


def _by_inner(leaf: Leaf) -> jax.Array:
    """‖Σ terms + dense‖² of one example: each with itself, and twice each with each other."""
    pairs, sites = _pairs(leaf), [term.site for term in leaf.terms]
    found = jnp.zeros((), wide(leaf.like.dtype))
    for pair in pairs:
        found += inner(pair, pair)
    for (a, at), (b, bt) in itertools.combinations(zip(pairs, sites, strict=True), 2):
        if not apart(at.view, bt.view):
            found += 2 * inner(a, b)
    if leaf.dense is not None:
        dense = leaf.dense.astype(wide(leaf.dense.dtype))
        found += _square_sum(dense)
        for pair, site in zip(pairs, sites, strict=True):
            found += 2 * inner_with(site.view.look(dense), pair)
    return found


def _form(leaf: Leaf) -> jax.Array:
    """g of one example, in float32 at least. Rows that were read are added in place, at the end."""
    found = jnp.zeros(leaf.like.shape, wide(leaf.like.dtype))
    found = found if leaf.dense is None else found + leaf.dense
    placed = zip(_pairs(leaf), (term.site for term in leaf.terms), strict=True)
    for pair, site in sorted(placed, key=lambda both: isinstance(both[0].u, Rows)):
        if is_whole(site.view):
            found = formed(pair, found)
        else:
            found += _to_parameter(leaf.like, site, formed(pair))
    return found


def _to_parameter(like: jax.ShapeDtypeStruct, site: Site, product: jax.Array) -> jax.Array:
    """A gradient in the shape of a view as one in the shape of the parameter."""
    _, pull = vjp(site.view.look, jnp.zeros(like.shape, product.dtype))
    return pull(product)[0]


def _held(leaf: Leaf) -> int:
    """How many numbers the factors of all examples have."""
    held = sum(term.kept.size + term.ct.size for term in leaf.terms)
    return held + (leaf.dense.size if leaf.dense is not None and not leaf.shared else 0)


def _at_once(leaf: Leaf) -> int:
    """How many examples to form at a time, so that they take no more room than all the factors."""
    return _even(leaf.m, min(_close(leaf), _held(leaf) // max(1, math.prod(leaf.like.shape))))


def _close(leaf: Leaf) -> int:
    """How many examples to form at a time, so that they stay close to the processor."""
    one = math.prod(leaf.like.shape) + sum(map(_patches, leaf.terms))
    return _even(leaf.m, CLOSE // max(1, one))


def _even(m: int, most: int) -> int:
    """At most so many of m, and a divisor of m if there is one nearby."""
    most = max(1, min(m, most))
    return next((k for k in range(most, most // 2, -1) if m % k == 0), most)


def _square(array: jax.Array) -> jax.Array:
    """In float32 at least: the square of 256 is no float16."""
    return jnp.square(array.astype(wide(array.dtype)))


def _square_sum(array: jax.Array) -> jax.Array:
    return jnp.sum(_square(array))


def _patches(term: Term) -> int:
    """How many numbers the factors of one example have beside what is held: a convolution's do."""

    def factors(kept, ct):
        pair = _kind(term.site).pair(term.site, term.site.view.owned, kept, ct)
        return pair.u.array, pair.v.array

    held = factor_types(term.site)
    found = jax.eval_shape(factors, *held)
    return sum(array.size for array in found) - sum(array.size for array in held)


def _chosen(array: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Zero for the examples of weight zero: zero times a NaN would be none."""
    return jnp.where(_along(weights, array, axis) != 0, array, jnp.zeros_like(array))


def _weighted(array: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    return (_chosen(array, weights, axis) * _along(weights, array, axis)).astype(array.dtype)


def _sum_of_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ wᵢ rowᵢ, of few rows in one pass and of more as a product: a sum over the first axis jumps
    from row to row for each number."""
    if len(rows) > FEW:
        return jnp.tensordot(weights, _chosen(rows, weights, 0), 1, precision=lax.Precision.HIGHEST)
    parts = zip(weights, rows, strict=True)
    return functools.reduce(jnp.add, [jnp.where(w != 0, w * row, 0) for w, row in parts])


def _along(weights: jax.Array, array: jax.Array, axis: int) -> jax.Array:
    return weights.reshape(-1, *(1 for _ in range(array.ndim - axis - 1)))
