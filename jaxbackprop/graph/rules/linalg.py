"""Factorisations and triangular systems (M. Giles, *An extended collection of matrix derivative
results for forward and reverse mode algorithmic differentiation*, 2008)."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import UnsupportedPrimitive, rule

# The primitive reads the lower triangle alone. Since 0.12 jax's gradient says so; before, it was
# that of both triangles, and is the same once the input has been symmetrised, as jnp does.
READS_LOWER = jax.__version_info__ >= (0, 12)


@rule("cholesky")
def cholesky(cts, outs, x, **params):
    """With Φ the lower triangle, its diagonal halved: G = L⁻ᵀ Φ(Lᵀ ct) L⁻¹. An entry below the
    diagonal stands for its mirror image as well: G + Gᵀ."""
    (ct,), (L,) = cts, outs
    L = jnp.tril(L)  # the primitive leaves what it likes above the diagonal

    def back():
        n = x.shape[-1]
        half = jnp.tril(jnp.ones((n, n), x.dtype)) - 0.5 * jnp.eye(n, dtype=x.dtype)
        middle = (jnp.swapaxes(L, -1, -2) @ ct) * half
        left = lax.linalg.triangular_solve(L, middle, left_side=True, lower=True, transpose_a=True)
        both = lax.linalg.triangular_solve(L, left, left_side=False, lower=True)
        return jnp.tril(both) + jnp.tril(jnp.swapaxes(both, -1, -2), -1) if READS_LOWER else both

    return (back,)


@rule("triangular_solve")
def triangular_solve(cts, outs, a, b, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal):
    """x = A⁻¹ b: to b A⁻ᵀ ct; to A −(A⁻ᵀ ct) xᵀ, on A's triangle. Sides as they were given."""
    (ct,), (x,) = cts, outs

    def to_b():
        return lax.linalg.triangular_solve(
            a,
            ct,
            left_side=left_side,
            lower=lower,
            transpose_a=not transpose_a,
            unit_diagonal=unit_diagonal,
        )

    def to_a():
        pairs = (to_b(), x) if left_side else (x, to_b())
        first, second = pairs[::-1] if transpose_a else pairs
        if left_side:
            whole = -first @ jnp.swapaxes(second, -1, -2)
        else:
            whole = -jnp.swapaxes(first, -1, -2) @ second
        triangle = jnp.tril if lower else jnp.triu
        whole = triangle(whole)
        return whole * (1 - jnp.eye(a.shape[-1], dtype=a.dtype)) if unit_diagonal else whole

    return (to_a, to_b)


@rule("svd")
def svd(cts, outs, x, *, compute_uv, **params):
    """Of the singular values alone: U diag(ct) Vᵀ."""
    ct, *_ = cts
    if compute_uv:
        raise UnsupportedPrimitive("no rule for 'svd' with compute_uv=True")

    def back():
        u, _, vt = jnp.linalg.svd(x, full_matrices=False)
        return (u * ct[..., None, :]) @ vt

    return (back,)
