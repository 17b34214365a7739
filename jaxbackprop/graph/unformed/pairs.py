"""Products that are left unformed: two factors with named axes, and what is computed from them.

A `Pair` stands for Σ u v over every axis that is not of the parameter. The axes of a factor have
names. The name of an axis of the parameter is a number, its stride there, so that two pairs of one
parameter name the same axis alike; all other names are tuples, and belong to one operation alone.

With t an axis that is summed and u(t), v(t) the rows there,

    ⟨Σ u(t) v(t)ᵀ, Σ u′(s) v′(s)ᵀ⟩ = Σ_ts (u(t) · u′(s)) (v(t) · v′(s)),

whose two matrices of products are small where few numbers t are summed (X. Li, F. Tramèr, P. Liang
and T. Hashimoto, *Large language models can be strong differentially private learners*, 2022).
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import wide

WIDE = 256  # columns of a product, from which on its first operand is worth a turned copy
Names = tuple  # of numbers and tuples, one an axis


class Factor(NamedTuple):
    """An array and the names of its axes."""

    array: jax.Array
    names: Names


class Rows(NamedTuple):
    """The factor 1[array = i], i the place along the parameter's axis `row` of length `size`.

    An index of `size` is no row at all.
    """

    array: jax.Array
    names: Names
    row: int | tuple
    size: int


class Pair(NamedTuple):
    """Σ u v, with the axes `names` of lengths `sizes`, to be read in the shape `shape`."""

    u: Factor | Rows
    v: Factor
    names: Names
    sizes: tuple[int, ...]
    shape: tuple[int, ...]


def formed(pair: Pair, onto: jax.Array | None = None) -> jax.Array:
    """Σ u v itself, added to what is there already."""
    u, v, *_ = pair
    there = None if onto is None else onto.reshape(pair.sizes)
    if isinstance(u, Rows):
        found = _scatter(u, v, pair, there)
    else:
        found = _product(u, v, pair.names)
        found = found if there is None else there + found
    return found.reshape(pair.shape)


def inner(a: Pair, b: Pair) -> jax.Array:
    """⟨a, b⟩ for pairs that `meet_in`, neither of them formed."""
    b = _apart(b)
    first, second = (b.u, b.v) if meet_in(a, b) == "order" else (b.v, b.u)
    left = _meet(a.u, first, {*a.v.names, *second.names})
    right = _meet(a.v, second, {*left.names})
    return contract(left, right, ()).array


def meet_in(a: Pair, b: Pair) -> str | None:
    """The factors with the same axes of the parameter: in their order, crossed, or not at all."""
    (au, av), (bu, bv) = (_of_parameter(p) for p in (a, b))
    if (au, av) == (bu, bv):
        return "order"
    return "crossed" if (au, av) == (bv, bu) else None


def inner_with(array: jax.Array, pair: Pair) -> jax.Array:
    """⟨array, Σ u v⟩ for an array in the shape of the formed product."""
    whole = Factor(array.reshape(pair.sizes), pair.names)
    return contract(_meet(pair.u, whole, {*pair.v.names}), pair.v, ()).array


def squared(pair: Pair, besides: tuple) -> Pair | None:
    """The pair of the squares (u v)², where nothing is summed besides one axis; else None."""
    lengths = _lengths(pair.u) | _lengths(pair.v)
    summed = lengths.keys() - {besides, *pair.names}
    if isinstance(pair.u, Rows) or any(lengths[name] > 1 for name in summed):
        return None
    u, v = (
        Factor(jnp.square(f.array.astype(wide(f.array.dtype))), f.names) for f in (pair.u, pair.v)
    )
    return pair._replace(u=u, v=v)


def cost(pair: Pair) -> int:
    """Multiplications to form it, and at least one a number."""
    lengths = {} if isinstance(pair.u, Rows) else _lengths(pair.u)
    return max(_size(lengths | _lengths(pair.v)), math.prod(pair.shape))


def inner_cost(a: Pair, b: Pair) -> int:
    """Multiplications of `inner`."""
    b = _apart(b)
    first, second = (b.u, b.v) if meet_in(a, b) == "order" else (b.v, b.u)
    return _size(_lengths(a.u) | _lengths(first)) + _size(_lengths(a.v) | _lengths(second))


def contract(a: Factor, b: Factor, names: Sequence) -> Factor:
    """Σ a b over all axes but `names`."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys((*a.names, *b.names)))}
    place = numbers.__getitem__
    array = jnp.einsum(
        a.array,
        [*map(place, a.names)],
        b.array,
        [*map(place, b.names)],
        [*map(place, names)],
        preferred_element_type=jnp.promote_types(wide(a.array.dtype), wide(b.array.dtype)),
    )
    return Factor(array, tuple(names))


def _product(u: Factor, v: Factor, names: Names) -> jax.Array:
    """Σ u v. On CPUs XLA has a fast product for a first operand that is summed over its last axis.

    It turns none by itself. The first operand is the factor with the parameter's outer axis; if it
    is the narrower one, and the other wide, a turned copy of it costs little beside the product.
    """
    if _own(v, u, names) > _own(u, v, names):
        u, v = v, u
    (_, rows), (_, columns) = _own(u, v, names), _own(v, u, names)
    summed = [name for name in v.names if name in u.names and name not in names]
    order = [*(name for name in u.names if name not in summed), *summed]
    if columns >= max(rows, WIDE) and order != [*u.names]:
        turned = jnp.transpose(u.array, [u.names.index(name) for name in order])
        u = Factor(lax.optimization_barrier(turned), tuple(order))
    return contract(u, v, names).array


def _own(factor: Factor, other: Factor, names: Names) -> tuple[int, int]:
    """The greatest stride and the number of places of the axes that this factor alone has."""
    own = {n: size for n, size in _lengths(factor).items() if n in names and n not in other.names}
    return max((n for n in own if isinstance(n, int)), default=0), _size(own)


def _meet(a: Factor | Rows, b: Factor | Rows, others: Collection) -> Factor:
    """Σ a b over the axes that neither has alone and no other factor has."""
    if isinstance(a, Rows) and isinstance(b, Rows):
        names = tuple(dict.fromkeys((*a.names, *b.names)))
        x, y = (_spread(Factor(r.array, r.names), names) for r in (a, b))
        return Factor(((x == y) & (x < a.size)).astype(jnp.float32), names)
    if isinstance(b, Rows):
        return _meet(b, a, others)
    if isinstance(a, Rows):
        return _read(a, b)
    names = (*a.names, *(name for name in b.names if name not in a.names))
    kept = [n for n in names if n in others or not (n in a.names and n in b.names)]
    return contract(a, b, kept)


def _read(rows: Rows, whole: Factor) -> Factor:
    """The rows of an array at the index."""
    shared = [name for name in rows.names if name in whole.names]
    if shared:  # one table of rows a step: too rare for a gather of its own
        places = jax.nn.one_hot(rows.array, rows.size, dtype=whole.array.dtype)
        names = (*rows.names, *(n for n in whole.names if n not in (*shared, rows.row)))
        return contract(Factor(places, (*rows.names, rows.row)), whole, names)
    axis = whole.names.index(rows.row)
    array = jnp.take(whole.array, rows.array, axis=axis, mode="fill", fill_value=0)
    return Factor(array, (*whole.names[:axis], *rows.names, *whole.names[axis + 1 :]))


def _scatter(rows: Rows, v: Factor, pair: Pair, there: jax.Array | None) -> jax.Array:
    """Σ over the places with one index, row by row; the steps that own a table keep it apart."""
    lengths = dict(zip(pair.names, pair.sizes, strict=True))
    own = [name for name in rows.names if name in lengths]
    rest = [name for name in v.names if name in lengths and name not in rows.names]
    data = contract(v, Factor(jnp.ones((), v.array.dtype), ()), (*rows.names, *rest)).array
    count = math.prod(lengths[name] for name in own) * rows.size
    segment = jnp.zeros_like(rows.array)
    for name in own:
        steps = _spread(Factor(jnp.arange(lengths[name]), (name,)), rows.names)
        segment = segment * lengths[name] + steps.astype(segment.dtype)
    segment = jnp.where(rows.array < rows.size, segment * rows.size + rows.array, count)
    flat = data.reshape(segment.size, *data.shape[segment.ndim :])
    there = jnp.zeros(pair.sizes, flat.dtype) if there is None else there
    order = (*own, rows.row, *rest)
    tables = _spread(Factor(there, pair.names), order)
    sums = tables.reshape(count, *flat.shape[1:]).at[segment.reshape(-1)].add(flat, mode="drop")
    return _spread(Factor(sums.reshape(tables.shape), order), pair.names)


def _spread(factor: Factor, names: Sequence) -> jax.Array:
    """The array with an axis for each of the names, in their order."""
    order = sorted(range(len(factor.names)), key=lambda d: names.index(factor.names[d]))
    new = [d for d, name in enumerate(names) if name not in factor.names]
    return jnp.expand_dims(jnp.transpose(factor.array, order), new)


def _apart(pair: Pair) -> Pair:
    """The same pair, with other names for what is summed: its sum is not that of another pair."""

    def rename(names):
        return tuple(name if isinstance(name, int) else ("other", name) for name in names)

    u = pair.u._replace(names=rename(pair.u.names))
    if isinstance(u, Rows):
        u = u._replace(row=rename((u.row,))[0])
    v = pair.v._replace(names=rename(pair.v.names))
    return pair._replace(u=u, v=v, names=rename(pair.names))


def _of_parameter(pair: Pair) -> tuple[frozenset, frozenset]:
    """The parameter's axes in u and in v."""
    u, v = _lengths(pair.u).keys(), _lengths(pair.v).keys()
    rows = {pair.u.row} if isinstance(pair.u, Rows) else set()
    ours = {name for name in (*u, *v, *rows) if isinstance(name, int)}
    return frozenset(ours & (u | rows)), frozenset(ours & v)


def _lengths(factor: Factor | Rows) -> dict:
    return dict(zip(factor.names, factor.array.shape, strict=True))


def _size(lengths: dict) -> int:
    return math.prod(lengths.values())
