"""The gradients of one parameter, of many examples, in the form that the graph leaves them in.

One gradient is a sum of *terms*, products left unformed, one a site, and of a *dense* part, if the
parameter has formed uses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.unformed.sites import Site


class Term(NamedTuple):
    """A site's factors: what was kept there, and the cotangent.

    Of many examples, the axis of the examples comes after those of the loops around the site, like
    that of one more loop, of which the parameter has no axis.
    """

    site: Site
    kept: Any
    ct: jax.Array

    @property
    def axis(self) -> int:
        """The place of the examples' axis."""
        return len(self.site.view.steps)


class Leaf(NamedTuple):
    """Gradients by one parameter, of the shape and dtype of `like`, of m examples.

    `dense` has a first axis of m unless it is `shared`, the same for every example. Of one example
    (see `each`) the same, without the axes of the examples.
    """

    like: jax.ShapeDtypeStruct
    m: int
    terms: list[Term]
    dense: jax.Array | None = None
    shared: bool = False


def each(function: Callable[[Leaf], jax.Array], leaf: Leaf, at_once: int) -> jax.Array:
    """function(the leaf of one example), of each of them, with a first axis of m."""
    if at_once >= leaf.m:
        return _vmapped(function, leaf)
    turns, rest = divmod(leaf.m, at_once)
    found = lax.map(
        lambda turn: _vmapped(function, _part(leaf, turn * at_once, at_once)), jnp.arange(turns)
    )
    found = found.reshape(turns * at_once, *found.shape[2:])
    if not rest:
        return found
    last = _vmapped(function, _part(leaf, turns * at_once, rest))
    return jnp.concatenate([found, last])


def sum_over(function: Callable[[Leaf], jax.Array], leaf: Leaf, at_once: int) -> jax.Array:
    """Σ function(the leaf of one example) over the examples."""
    turns, rest = divmod(leaf.m, min(at_once, leaf.m))
    size = min(at_once, leaf.m)

    def add(so_far, turn):
        return so_far + jnp.sum(_vmapped(function, _part(leaf, turn * size, size)), 0), None

    found = jnp.sum(_vmapped(function, _part(leaf, turns * size, rest)), 0) if rest else 0
    if turns == 1:
        return found + jnp.sum(_vmapped(function, _part(leaf, 0, size)), 0)
    start = jax.eval_shape(lambda: jnp.sum(_vmapped(function, _part(leaf, 0, size)), 0))
    return lax.scan(add, found + jnp.zeros(start.shape, start.dtype), jnp.arange(turns))[0]


def _vmapped(function: Callable[[Leaf], jax.Array], leaf: Leaf) -> jax.Array:
    def one(factors, dense):
        terms = [Term(term.site, *pair) for term, pair in zip(leaf.terms, factors, strict=True)]
        return function(leaf._replace(terms=terms, dense=dense))

    factors = [(_in_front(t.kept, t.axis), _in_front(t.ct, t.axis)) for t in leaf.terms]
    dense_axis = None if leaf.shared or leaf.dense is None else 0
    return jax.vmap(one, (0, dense_axis), axis_size=leaf.m)(factors, leaf.dense)


def _in_front(array: jax.Array, axis: int) -> jax.Array:
    """The examples first, copied once: left to itself, XLA would turn each operand of each product
    of a batch in its own way."""
    return lax.optimization_barrier(jnp.moveaxis(array, axis, 0)) if axis else array


def _part(leaf: Leaf, start: Any, size: int) -> Leaf:
    """The leaf of some of the examples, from start on."""

    def cut(array, axis):
        return lax.dynamic_slice_in_dim(array, start, size, axis)

    terms = [Term(t.site, cut(t.kept, t.axis), cut(t.ct, t.axis)) for t in leaf.terms]
    dense = leaf.dense if leaf.dense is None or leaf.shared else cut(leaf.dense, 0)
    return leaf._replace(m=size, terms=terms, dense=dense)
