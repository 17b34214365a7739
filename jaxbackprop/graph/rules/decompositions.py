"""Eigenvalues and -vectors, singular values and -vectors, and Q R.

Where eigenvalues or singular values meet, the vectors are not functions of the matrix, and the
cotangents of vectors meet a division by zero: as in JAX the result is Inf or NaN. Cotangents of the
values alone pass. Vectors are defined up to a factor, which is JAX's choice (LAPACK's).
"""

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.adjoint import (
    H,
    adjoint,
    as_diagonal,
    conj,
    copy_lower,
    diagonal,
    dot,
    eye,
    of_triangle,
)
from jaxbackprop.graph.rules.table import UnsupportedPrimitive, cast, rule


def _inverse_differences(values):
    """1 / (vⱼ − vᵢ), and 0 on the diagonal."""
    unit = eye(values[..., None], values.shape[-1])
    return 1 / (values[..., None, :] - values[..., None] + unit) - unit


@rule("eigh", zeros=False)
@adjoint
def eigh(cts, outs, x, *, lower, subset_by_index, **params):
    """A = V diag(w) Vᴴ: V (diag(Cw) + F ∘ Vᴴ Cv) Vᴴ, Fᵢⱼ = 1 / (wⱼ − wᵢ), on the triangle that the
    primitive reads. (For an A that is not Hermitian, with symmetrize_input=False, jax.vjp evaluates
    and differentiates at ½(A + Aᴴ), which is another matrix than the one that the triangle means.)

    (M. Giles, *An extended collection of matrix derivative results for forward and reverse mode
    algorithmic differentiation*, 2008, 3.1.)
    """
    (ct_v, ct_w), (v, w) = cts, outs
    if subset_by_index not in (None, (0, x.shape[-1])):
        raise UnsupportedPrimitive("no rule for 'eigh' with subset_by_index, as in jax")

    def back():
        middle = jnp.zeros_like(v) if ct_w is None else as_diagonal(ct_w.astype(x.dtype))
        if ct_v is not None:
            middle += _inverse_differences(w).astype(x.dtype) * dot(H(v), ct_v)
        return of_triangle(dot(dot(v, middle), H(v)), lower)

    return (back,)


@rule("eig", zeros=False)
@adjoint
def eig(cts, outs, x, *, enable_eigvec_derivs, **options):
    """A = V diag(w) V⁻¹: V⁻ᴴ (diag(Cw) + F̄ ∘ Vᴴ Cu) Vᴴ, and of the left vectors the same for Aᴴ.

    LAPACK makes each vector of length 1 and its largest number real: Cu is what Cv leaves of
    changes of v that do neither. (C. Boeddeker, P. Hanebrink, L. Drude, J. Heymann and
    R. Haeb-Umbach, *On the computation of complex-valued gradients with application to
    statistically optimum beamforming*, 2017, for F.)
    """
    left, right = (options[f"compute_{side}_eigenvectors"] for side in ("left", "right"))
    if (left or right) and not enable_eigvec_derivs:
        raise UnsupportedPrimitive(
            "'eig' has no derivatives of its vectors unless jax.lax.linalg.eig is told "
            "enable_eigvec_derivs=True"
        )
    ct_w, w = cts[0], outs[0]

    def back():
        v = outs[-1] if right else lax.linalg.eig(x, compute_left_eigenvectors=False)[1]
        total = _of_eigenvectors(w, v, cts[-1] if right else None, ct_w)
        if left:
            total += H(_of_eigenvectors(conj(w), outs[1], cts[1], None))
        return cast(total, x.dtype)

    return (back,)


def _of_eigenvectors(w, v, ct_v, ct_w):
    middle = jnp.zeros_like(v) if ct_w is None else as_diagonal(ct_w)
    if ct_v is not None:
        along = jnp.sum(conj(v) * ct_v, -2, keepdims=True)  # of dv = c v: its length and its phase
        largest = jnp.argmax(jnp.abs(v), -2, keepdims=True)
        at_largest = lax.broadcasted_iota(largest.dtype, v.shape, v.ndim - 2) == largest
        size = jnp.sum(jnp.where(at_largest, jnp.real(v), 0), -2, keepdims=True)
        turned = lax.complex(jnp.zeros_like(size), jnp.imag(along) / size)
        ct_u = ct_v - v * jnp.real(along).astype(v.dtype) - jnp.where(at_largest, turned, 0)
        middle += conj(_inverse_differences(w)) * dot(H(v), ct_u)
    return jnp.linalg.solve(H(v), dot(middle, H(v)))


@rule("svd", zeros=False)
@adjoint
def svd(cts, outs, x, *, compute_uv, full_matrices=True, **options):
    """A = U diag(s) Vᴴ: U (diag(Cs) + (P + Pᴴ) diag(s) + diag(s) (Q + Qᴴ) + E) Vᴴ, where
    P = F ∘ Uᴴ Cu, Q = F ∘ Vᴴ Cv, Fᵢⱼ = 1 / (sⱼ² − sᵢ²), and E = i Im diag(Uᴴ Cu) / s is the phase
    of u, with that of v held. Of the longer side's vectors also what stands outside their space.

    (J. Townsend, *Differentiating the singular value decomposition*, 2016; Z.-Q. Wan and
    S.-X. Zhang, *Automatic differentiation for complex valued SVD*, 2019, for E.)
    """
    ct_s, *ct_vectors = cts
    m, n = x.shape[-2:]
    if compute_uv and full_matrices and m != n:
        raise UnsupportedPrimitive(
            "no rule for 'svd' with full_matrices=True, as in jax: ask for full_matrices=False"
        )

    def back():
        if compute_uv:
            s, u, vh = outs
            ct_u, ct_vh = ct_vectors
        else:
            u, s, vh = lax.linalg.svd(x, full_matrices=False, compute_uv=True, **options)
            ct_u = ct_vh = None
        v, ct_v = H(vh), None if ct_vh is None else H(ct_vh)
        total = jnp.zeros_like(x)
        if ct_s is not None:
            total += dot(u * ct_s[..., None, :].astype(x.dtype), vh)
        if ct_u is not None:
            total += _of_left_vectors(u, s, v, ct_u)
        if ct_v is not None:
            total += _of_right_vectors(u, s, v, ct_v)
        return total

    return (back,)


def _of_left_vectors(u, s, v, ct):
    """U ((P + Pᴴ) diag(s) + E) Vᴴ, and (1 − U Uᴴ) Cu diag(s)⁻¹ Vᴴ."""
    row = s[..., None, :].astype(u.dtype)
    inward = dot(H(u), ct)
    P = _inverse_square_differences(s).astype(u.dtype) * inward
    inverse = jnp.where(s == 0, 0, 1 / jnp.where(s == 0, 1, s)).astype(u.dtype)
    E = as_diagonal(0.5 * inverse * diagonal(inward - H(inward)))
    total = dot(dot(u, (P + H(P)) * row + E), H(v))
    if u.shape[-2] > v.shape[-2]:
        total += dot((ct - dot(u, inward)) / row, H(v))
    return total


def _of_right_vectors(u, s, v, ct):
    """U diag(s) (Q + Qᴴ) Vᴴ, and U diag(s)⁻¹ Cvᴴ (1 − V Vᴴ)."""
    column = s[..., None].astype(u.dtype)
    inward = dot(H(v), ct)
    Q = _inverse_square_differences(s).astype(u.dtype) * inward
    total = dot(dot(u, (Q + H(Q)) * column), H(v))
    if v.shape[-2] > u.shape[-2]:
        total += dot(u, H(ct - dot(v, inward)) / column)
    return total


def _inverse_square_differences(s):
    """1 / (sⱼ² − sᵢ²), and 0 on the diagonal."""
    row, column, unit = s[..., None, :], s[..., None], eye(s[..., None], s.shape[-1])
    return 1 / ((row + column) * (row - column) + unit) - unit


@rule("qr")
@adjoint
def qr(cts, outs, x, *, pivoting, full_matrices, **params):
    """A = Q R: (Cq + Q copy(R Crᴴ − Cqᴴ Q)) R⁻ᴴ, copy(M) Hermitian with the lower triangle of M.

    A wide A = (A₁, A₂) is A₁ = Q R₁ and R₂ = Qᴴ A₂, so that A₂ gets Q C₂ and Q also A₂ C₂ᴴ.
    (S. F. Walter and L. Lehmann, *Algorithmic differentiation of linear algebra functions with
    application in optimum experimental design*, 2010; D. A. Roberts and L. R. Roberts, *QR and LQ
    decomposition matrix backpropagation algorithms for square, wide, and deep matrices*, 2020.)
    """
    (ct_q, ct_r, *_), (q, r, *order) = cts, outs
    m, n = x.shape[-2:]

    def back():
        if m > n and full_matrices:
            whole = _thin(q[..., :n], r[..., :n, :], _of_complement(q, ct_q, n), ct_r[..., :n, :])
        else:
            square, rest = ct_r[..., :m], ct_r[..., m:]  # of a wide one; of others rest is empty
            to_q = ct_q + dot(dot(q, r[..., m:]), H(rest)) if n > m else ct_q
            whole = _thin(q, r[..., :m], to_q, square)
            whole = jnp.concatenate([whole, dot(q, rest)], -1) if n > m else whole
        if pivoting:
            return jnp.take_along_axis(whole, jnp.argsort(order[0])[..., None, :], -1)
        return whole

    return (back,)


def _thin(q, r, ct_q, ct_r):
    middle = copy_lower(dot(r, H(ct_r)) - dot(H(ct_q), q))
    right = ct_q + dot(q, middle)
    return lax.linalg.triangular_solve(r, right, transpose_a=True, conjugate_a=True)


def _of_complement(q, ct_q, n):
    """What the first n columns of a full Q get from the others, C: Householder's reflections make
    them −(Q_n + Q_p Z) (dQ_pn − Z dQ_nn)ᴴ + dQ_n Zᴴ, Z = Q_pn (Q_nn − 1)⁻¹.

    (S.-A. Papanicolopulos, *Derivatives of the full QR factorisation and of the factored-form and
    compact WY representations*, 2024, equations 32 and 33.)
    """
    first, others, ct = q[..., :n], q[..., n:], ct_q[..., n:]
    upper, lower = first[..., :n, :], first[..., n:, :]
    Zh = jnp.linalg.solve(H(upper - eye(q, n)), H(lower))
    Z = H(Zh)
    E = dot(H(ct), first + dot(others, Z))
    return ct_q[..., :n] + dot(ct, Z) + jnp.concatenate([dot(Zh, E), -E], -2)
