"""Triangular and banded systems, and the factors L Lᴴ and L U.

(M. Giles, *An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation*, 2008.)
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.adjoint import (
    H,
    T,
    adjoint,
    as_diagonal,
    conj,
    dot,
    eye,
    of_triangle,
)
from jaxbackprop.graph.rules.table import rule

# The primitive reads the lower triangle alone. Since 0.12 jax's gradient says so; before, it was
# that of both triangles, and is the same once the input has been symmetrised, as jnp does.
READS_LOWER = jax.__version_info__ >= (0, 12)

solve = lax.linalg.triangular_solve


@rule("cholesky")
@adjoint
def cholesky(cts, outs, x, **params):
    """With Φ the lower triangle, its diagonal halved: G = L⁻ᴴ Φ(Lᴴ C) L⁻¹. An entry below the
    diagonal stands for its mirror image as well: G + Gᴴ."""
    (ct,), (L,) = cts, outs
    L = jnp.tril(L)  # the primitive leaves what it likes above the diagonal

    def back():
        middle = jnp.tril(dot(H(L), ct)) * (1 - 0.5 * eye(x, x.shape[-1]))
        left = solve(L, middle, left_side=True, lower=True, transpose_a=True, conjugate_a=True)
        both = solve(L, left, left_side=False, lower=True)
        return of_triangle(both) if READS_LOWER else both

    return (back,)


@rule("triangular_solve")
@adjoint
def triangular_solve(cts, outs, a, b, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal):
    """x = A⁻¹ b: to b s = A⁻ᴴ C; to A −s xᴴ, on A's triangle. Sides as they were given."""
    (ct,), (x,) = cts, outs

    def to_b():
        return solve(
            a,
            ct,
            left_side=left_side,
            lower=lower,
            transpose_a=not transpose_a,
            conjugate_a=not conjugate_a,
            unit_diagonal=unit_diagonal,
        )

    def to_a():
        s = to_b()
        whole = -(dot(s, H(x)) if left_side else dot(H(x), s))
        whole = T(whole) if transpose_a else whole
        whole = conj(whole) if conjugate_a else whole
        return jnp.tril(whole, -unit_diagonal) if lower else jnp.triu(whole, unit_diagonal)

    return (to_a, to_b)


@rule("tridiagonal_solve")
@adjoint
def tridiagonal_solve(cts, outs, lower, d, upper, b, **params):
    """As every system A x = b: to b s = A⁻ᴴ C, to A −s xᴴ, on its three diagonals. The first number
    of `lower` and the last of `upper` stand outside the matrix."""
    (ct,), (x,) = cts, outs

    def to_b():
        none = jnp.zeros_like(d[..., :1])
        below = jnp.concatenate([none, upper[..., :-1]], -1)
        above = jnp.concatenate([lower[..., 1:], none], -1)
        return lax.linalg.tridiagonal_solve(conj(below), conj(d), conj(above), ct, **params)

    def along(row, column):
        """The diagonal of −s xᴴ that begins at this row and column."""
        s = to_b()
        n = d.shape[-1] - row - column
        products = s[..., row : row + n, :] * conj(x[..., column : column + n, :])
        edges = [(0, 0, 0)] * (d.ndim - 1) + [(row, column, 0)]
        return lax.pad(-jnp.sum(products, -1), jnp.zeros((), d.dtype), edges)

    return (lambda: along(1, 0), lambda: along(0, 0), lambda: along(0, 1), to_b)


@rule("lu")
@adjoint
def lu(cts, outs, x):
    """P A = L U, both in one matrix: L⁻ᴴ (tril₋₁(Lᴴ C) + triu(C Uᴴ)) U⁻ᴴ, rows put back in place.

    A factor of the smaller side is completed by the unit matrix. (F. R. de Hoog, R. S. Anderssen
    and M. A. Lukas, *Differentiation of matrix functionals using triangular factorization*, 2011.)
    """
    (ct, *_), (factors, _, permutation) = cts, outs

    def back():
        m, n = x.shape[-2:]
        k = min(m, n)
        L = jnp.tril(_columns(factors[..., :k], m), -1) + eye(x, m)
        U = jnp.triu(T(_columns(T(factors[..., :k, :]), n)))
        U = U + as_diagonal(
            jnp.where(jnp.arange(n) < k, 0, 1).astype(x.dtype)[(None,) * (x.ndim - 2)]
        )
        middle = jnp.tril(dot(H(L), ct), -1) + jnp.triu(dot(ct, H(U)))
        left = solve(
            L,
            middle,
            left_side=True,
            lower=True,
            transpose_a=True,
            conjugate_a=True,
            unit_diagonal=True,
        )
        permuted = solve(U, left, left_side=False, transpose_a=True, conjugate_a=True)
        return jnp.take_along_axis(permuted, jnp.argsort(permutation)[..., None], -2)

    return (back,)


def _columns(x, n):
    """x with columns of zeros up to n of them."""
    return jnp.concatenate([x, jnp.zeros((*x.shape[:-1], n - x.shape[-1]), x.dtype)], -1)
