"""Operations that move numbers without changing them: cotangents move back the same way."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbackprop.graph.rules.table import rule


@rule("reshape")
def reshape(cts, outs, x, *dynamic, dimensions=None, **params):
    """With `dimensions`, the axes of x are put in that order first."""
    (ct,) = cts
    if dimensions is None:
        return (lambda: lax.reshape(ct, x.shape),)
    ordered = [x.shape[d] for d in dimensions]
    return (lambda: lax.transpose(lax.reshape(ct, ordered), np.argsort(dimensions)),)


@rule("squeeze", "expand_dims")
def squeeze(cts, outs, x, **params):
    (ct,) = cts
    return (lambda: lax.reshape(ct, x.shape),)


@rule("transpose")
def transpose(cts, outs, x, *, permutation):
    (ct,) = cts
    return (lambda: lax.transpose(ct, np.argsort(permutation)),)


@rule("rev")
def rev(cts, outs, x, *, dimensions):
    (ct,) = cts
    return (lambda: lax.rev(ct, dimensions),)


@rule("broadcast_in_dim")
def broadcast_in_dim(cts, outs, x, *dynamic, shape, broadcast_dimensions, **params):
    """A number used in many places: its contributions sum."""
    (ct,) = cts

    def back():
        new = [d for d in range(ct.ndim) if d not in broadcast_dimensions]
        stretched = [
            d for i, d in enumerate(broadcast_dimensions) if x.shape[i] == 1 and shape[d] != 1
        ]
        return lax.reshape(jnp.sum(ct, axis=(*new, *stretched)), x.shape)

    return (back,)


@rule("concatenate")
def concatenate(cts, outs, *xs, dimension):
    (ct,) = cts
    ends = np.cumsum([x.shape[dimension] for x in xs]).tolist()
    return tuple(
        lambda start=end - x.shape[dimension], end=end: lax.slice_in_dim(
            ct, start, end, axis=dimension
        )
        for x, end in zip(xs, ends, strict=True)
    )


@rule("split")
def split(cts, outs, x, *, sizes, axis):
    return (lambda: lax.concatenate(cts, axis),)


@rule("stack")
def stack(cts, outs, *xs, **params):
    (ct,) = cts
    axis = params.get("axis", 0)
    return tuple(lambda i=i: lax.index_in_dim(ct, i, axis, False) for i in range(len(xs)))


@rule("unstack")
def unstack(cts, outs, x, *, axis):
    return (lambda: jnp.stack(cts, axis),)


@rule("pad")
def pad(cts, outs, x, value, *, padding_config):
    """To x its own places; to the padding value all the others."""
    (ct,) = cts

    def to_x():
        edges = [(-low, -high, 0) for low, high, _ in padding_config]
        unpadded = lax.pad(ct, jnp.zeros((), ct.dtype), edges)
        strides = [interior + 1 for *_, interior in padding_config]
        return lax.slice(unpadded, [0] * ct.ndim, unpadded.shape, strides)

    return (to_x, lambda: jnp.sum(ct) - jnp.sum(to_x()))


@rule("tile")
def tile(cts, outs, x, *, reps, **params):
    (ct,) = cts

    def back():
        shape, repeated = [], []
        for r, n in zip((1,) * (ct.ndim - len(reps)) + tuple(reps), x.shape, strict=True):
            if r != 1:
                repeated.append(len(shape))
                shape.append(r)
            shape.append(n)
        return jnp.sum(lax.reshape(ct, shape), axis=tuple(repeated))

    return (back,)
