"""Matrix products and convolutions: BP2 and BP3 for every layout of the axes."""

import math

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import rule


@rule("dot_general")
def dot_general(cts, outs, x, y, *, dimension_numbers, precision, preferred_element_type, **params):
    """out = Σ_k x[b, i, k] y[b, k, j]: to x Σ_j ct y, to y Σ_i x ct, with the axes named.

    An axis of x and y that is contracted or batched has one name; the others have their own.
    """
    (ct,) = cts
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    x_names = [f"i{d}" for d in range(x.ndim)]
    y_names = [f"j{d}" for d in range(y.ndim)]
    for dx, dy in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        y_names[dy] = x_names[dx]
    batch = [x_names[d] for d in x_batch]
    summed = {x_names[d] for d in x_sum}
    out_names = batch + [
        name for name in x_names + y_names if name not in batch and name not in summed
    ]

    def contract(a, a_names, b, b_names, names):
        shared = [name for name in a_names if name in b_names]
        batched = [name for name in shared if name in names]
        reduced = [name for name in shared if name not in names]
        contracting, batching = (
            (tuple(map(a_names.index, group)), tuple(map(b_names.index, group)))
            for group in (reduced, batched)
        )
        product = lax.dot_general(a, b, (contracting, batching), precision=precision)
        found = batched + [n for n in (*a_names, *b_names) if n not in shared]
        return lax.transpose(product, [found.index(name) for name in names])

    def to_x():
        return contract(ct.astype(_wide(ct, y)), out_names, y, y_names, x_names).astype(x.dtype)

    def to_y():
        return contract(ct.astype(_wide(ct, x)), out_names, x, x_names, y_names).astype(y.dtype)

    return (to_x, to_y)


def _wide(ct, other):
    """The dtype in which a cotangent meets the other operand: the wider, if they differ."""
    return ct.dtype if ct.dtype == other.dtype else jnp.promote_types(ct.dtype, other.dtype)


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
    """Both gradients are convolutions, with strides and dilations in each other's place.

    (V. Dumoulin and F. Visin, *A guide to convolution arithmetic for deep learning*, 2016.)
    """
    (ct,) = cts
    if ct.size == 0:  # a kernel larger than x: there is no window at all
        return (lambda: jnp.zeros_like(x), lambda: jnp.zeros_like(w))
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
        return back

    def to_w():
        """x convolved with ct: examples take the part of input features."""
        return lax.conv_general_dilated(
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
