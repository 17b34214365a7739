"""Matrix products and convolutions: BP2 and BP3 for every layout of the axes."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxbackprop.graph.rules.table import UnsupportedPrimitive, explicit_sharding, rule


@rule("dot_general")
def dot_general(cts, outs, x, y, *, dimension_numbers, precision, **params):
    """out = Σ_k x[b, i, k] y[b, k, j]: to x Σ_j ct y, to y Σ_i x ct, with the axes named."""
    (ct,) = cts
    x_names, y_names, out_names = _names(x, y, dimension_numbers)

    def contract(other, other_names, mine, names):
        shared = [name for name in out_names if name in other_names]
        batched = [name for name in shared if name in names]
        reduced = [name for name in shared if name not in names]
        contracting, batching = (
            (tuple(map(out_names.index, group)), tuple(map(other_names.index, group)))
            for group in (reduced, batched)
        )
        wide = _wide(ct, other)
        found = batched + [n for n in (*out_names, *other_names) if n not in shared]
        product = lax.dot_general(
            ct.astype(wide),
            other,
            (contracting, batching),
            precision=precision,
            preferred_element_type=wide,
            out_sharding=_divided(mine, [names.index(name) for name in found]),
        )
        return lax.transpose(product, [found.index(name) for name in names]).astype(mine.dtype)

    return (
        lambda: contract(y, y_names, x, x_names),
        lambda: contract(x, x_names, y, y_names),
    )


def _divided(x, order):
    """How a product with x's axes in another order is divided over the devices, if x says so."""
    sharding = explicit_sharding(jax.typeof(x))
    return sharding and sharding.update(spec=PartitionSpec(*(sharding.spec[d] for d in order)))


def _names(x, y, dimension_numbers):
    """Names of the axes of x, y and their product: an axis that x and y contract or batch has one
    name in both; the others have their own."""
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    x_names = [f"i{d}" for d in range(x.ndim)]
    y_names = [f"j{d}" for d in range(y.ndim)]
    for dx, dy in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        y_names[dy] = x_names[dx]
    batch = [x_names[d] for d in x_batch]
    gone = {*batch, *(x_names[d] for d in x_sum)}
    return x_names, y_names, batch + [n for n in (*x_names, *y_names) if n not in gone]


def _wide(ct, other):
    """The dtype in which a cotangent meets the other operand: the wider, if they differ."""
    floating = jnp.issubdtype(other.dtype, jnp.inexact)
    wider = floating and jnp.finfo(other.dtype).bits > jnp.finfo(ct.dtype).bits
    return other.dtype if wider else ct.dtype


@rule("ragged_dot_general")
def ragged_dot_general(
    cts, outs, x, y, sizes, *, ragged_dot_dimension_numbers, precision, group_offset, **params
):
    """out[b, r, j] = Σ_k x[b, r, k] y[g, b, k, j], with g the group that row r is in: to x
    Σ_j ct y of the row's group, to y the sum over the rows of the group, Σ_r x ct.

    That sum is the product's other form, out[g, b, i, j] = Σ_r x[b, i, r] y[b, r, j], whose ways
    back are of the first form again.
    """
    (ct,) = cts
    numbers = ragged_dot_dimension_numbers
    (ragged,), group = numbers.lhs_ragged_dimensions, list(numbers.rhs_group_dimensions)
    _, (x_batch, _) = numbers.dot_dimension_numbers
    if ragged in x_batch or group_offset is not None:
        raise UnsupportedPrimitive(
            "no rule for 'ragged_dot_general' of ragged examples or with group_offset, as in jax"
        )
    x_names, y_names, out_names = _names(x, y, numbers.dot_dimension_numbers)
    batch = [x_names[d] for d in x_batch]
    if group:  # an axis of y alone, that the product does not have
        out_names.remove(y_names[group[0]])
        y_names[group[0]] = "group"
    else:
        out_names = ["group", *out_names]
    row = x_names[ragged]

    def product(a, a_names, b, b_names, mine, names):
        reduced = [n for n in a_names if n in b_names and n not in batch]
        wide = _wide(a, b)
        found = lax.ragged_dot_general(
            a.astype(wide),
            b.astype(wide),
            sizes,
            lax.RaggedDotDimensionNumbers(
                dot_dimension_numbers=tuple(
                    (tuple(map(a_names.index, axes)), tuple(map(b_names.index, axes)))
                    for axes in (reduced, batch)
                ),
                lhs_ragged_dimensions=[a_names.index(row)],
                rhs_group_dimensions=[b_names.index("group")] if "group" in b_names else [],
            ),
            precision=precision,
        )
        own = [n for n in (*a_names, *b_names) if n not in (*batch, *reduced, "group")]
        order = ([] if "group" in b_names else ["group"]) + batch + own
        return lax.transpose(found, [order.index(n) for n in names]).astype(mine.dtype)

    def to_x():
        first, second = ((ct, out_names), (y, y_names))
        if not group:
            first, second = second, first
        return product(*first, *second, x, x_names)

    return (to_x, lambda: product(x, x_names, ct, out_names, y, y_names), None)


@rule("conv_general_dilated")
def conv_general_dilated(
    cts,
    outs,
    x,
    w,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    **params,
):
    """Both gradients are convolutions, with strides and dilations in each other's place. Where the
    result is wider than x and w, these meet it in its dtype.

    (V. Dumoulin and F. Visin, *A guide to convolution arithmetic for deep learning*, 2016.)
    """
    (ct,) = cts
    if 0 in (ct.size, x.size, w.size):  # no example, no feature, or a kernel larger than x
        return (lambda: jnp.zeros_like(x), lambda: jnp.zeros_like(w))
    x_dtype, w_dtype, wide = x.dtype, w.dtype, _wide(ct, x)
    x, w, ct = x.astype(wide), w.astype(wide), ct.astype(wide)
    x_spec, w_spec, out_spec = dimension_numbers
    groups = max(feature_group_count, batch_group_count)

    def spatial(array, spec, dilation):
        return [(array.shape[d] - 1) * s + 1 for d, s in zip(spec[2:], dilation, strict=True)]

    x_size = spatial(x, x_spec, lhs_dilation)
    w_size = spatial(w, w_spec, rhs_dilation)
    out_size = spatial(ct, out_spec, window_strides)
    sizes = list(zip(x_size, w_size, out_size, padding, strict=True))

    def to_x():
        """ct convolved with the reversed kernel, whose input and output features trade places."""
        kernel = _regroup(w, w_spec[0], w_spec[1], groups) if groups > 1 else w
        back = lax.conv_general_dilated(
            ct,
            lax.rev(kernel, w_spec[2:]),
            window_strides=lhs_dilation,
            padding=[(k - low - 1, n + low - o) for n, k, o, (low, _) in sizes],
            lhs_dilation=window_strides,
            rhs_dilation=rhs_dilation,
            dimension_numbers=lax.ConvDimensionNumbers(out_spec, _swap(w_spec), x_spec),
            feature_group_count=groups,
            precision=precision,
        )
        if batch_group_count > 1:
            back = _regroup(back, x_spec[1], x_spec[0], groups)
        return back.astype(x_dtype)

    def to_w():
        """x convolved with ct: examples take the part of input features."""
        back = lax.conv_general_dilated(
            x,
            ct,
            window_strides=rhs_dilation,
            padding=[(low, o + k - n - low - 1) for n, k, o, (low, _) in sizes],
            lhs_dilation=lhs_dilation,
            rhs_dilation=window_strides,
            dimension_numbers=lax.ConvDimensionNumbers(
                _swap(x_spec), _swap(out_spec), _swap(w_spec)
            ),
            feature_group_count=batch_group_count,
            batch_group_count=feature_group_count,
            precision=precision,
        )
        return back.astype(w_dtype)

    return (to_x, to_w)


def _swap(spec):
    """The first two axes of a layout, exchanged."""
    return (spec[1], spec[0], *spec[2:])


def _regroup(array, source, target, groups):
    """Move the group part of axis `source` to the front of axis `target`."""
    shape = list(array.shape)
    shape[source : source + 1] = [groups, shape[source] // groups]
    array = jnp.moveaxis(array.reshape(shape), source, 0)  # groups first, axes as they were
    array = jnp.moveaxis(array, 0, target)
    shape = list(array.shape)
    shape[target : target + 2] = [math.prod(shape[target : target + 2])]
    return array.reshape(shape)
