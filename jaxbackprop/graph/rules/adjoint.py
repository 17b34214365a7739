"""What the rules of linear algebra are written with.

The literature pairs a cotangent C with dZ as Re tr(Cᴴ dZ), JAX as Re tr(Cᵀ dZ): they are each
other's conjugates. A rule under `adjoint` is written as in the literature. Capitals are matrices,
the last two axes of an array; Xᴴ is `H(X)`.
"""

import functools

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.complex_numbers import is_complex

dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def adjoint(function):
    """A rule between cotangents of the literature's kind, as one between JAX's."""

    @functools.wraps(function)
    def rule(cts, outs, *inputs, **params):
        cts = [None if ct is None else conj(ct) for ct in cts]
        contributions = function(cts, outs, *inputs, **params)
        return tuple(
            None if contribution is None else (lambda c=contribution: conj(c()))
            for contribution in contributions
        )

    return rule


def conj(x):
    return lax.conj(x) if is_complex(x) else x


def T(x):
    return jnp.swapaxes(x, -1, -2)


def H(x):
    return conj(T(x))


def eye(x, n):
    """The unit matrix in x's dtype and with x's number of axes."""
    return jnp.eye(n, dtype=x.dtype).reshape((1,) * (x.ndim - 2) + (n, n))


def diagonal(x):
    return jnp.diagonal(x, axis1=-2, axis2=-1)


def as_diagonal(d):
    """The matrix with the diagonal d, zero elsewhere (also where d is Inf or NaN)."""
    n = d.shape[-1]
    return jnp.where(eye(d[..., None], n) == 1, d[..., None], jnp.zeros_like(d[..., None]))


def real_diagonal(x):
    return as_diagonal(jnp.real(diagonal(x)).astype(x.dtype))


def copy_lower(x):
    """The Hermitian matrix with x's lower triangle, of whose diagonal it keeps the real part."""
    below = jnp.tril(x, -1)
    return below + H(below) + real_diagonal(x)


def of_triangle(x, lower=True):
    """The cotangent of a Hermitian matrix as that of the triangle which is read: an entry stands
    for its mirror image as well."""
    both = x + H(x)
    beside = jnp.tril(both, -1) if lower else jnp.triu(both, 1)
    return beside + real_diagonal(x)
