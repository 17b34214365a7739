"""Factorisations with their vectors, systems, and what is made of them: real, complex, batched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import g1, g4
from jax import lax

from jaxbackprop import grad
from jaxbackprop.graph import UnsupportedPrimitive, vjp
from jaxbackprop.graph.rules import RULES

rng = np.random.default_rng(3)


def real(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def complex_(*shape):
    return lax.complex(real(*shape), real(*shape))


def hermitian(a):
    return a + jnp.swapaxes(a, -1, -2).conj()


def definite(a):
    return a @ jnp.swapaxes(a, -1, -2).conj() + 2 * jnp.eye(a.shape[-1], dtype=a.dtype)


def thin_svd(a):
    return jnp.linalg.svd(a, full_matrices=False)


def tridiagonal(d, b):
    return lax.linalg.tridiagonal_solve(jnp.roll(d, 1, -1) / 4, d + 3, jnp.roll(d, 2, -1) / 4, b)


def eig(a):
    return tuple(lax.linalg.eig(a, enable_eigvec_derivs=True))


def lu_solve(a, b):
    return jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(a), b)


def triangular(a, b):
    return jax.scipy.linalg.solve_triangular(a, b, trans=2, lower=True)


FULL = functools.partial(jnp.linalg.qr, mode="complete")
COMPLEX = {
    "eigh": (lambda a: jnp.linalg.eigh(hermitian(a)), (2, 4, 4)),
    "svd, tall": (thin_svd, (2, 5, 3)),
    "svd, wide": (thin_svd, (3, 5)),
    "the singular values": (functools.partial(jnp.linalg.svd, compute_uv=False), (4, 3)),
    "qr, tall": (jnp.linalg.qr, (2, 5, 3)),
    "qr, wide": (jnp.linalg.qr, (3, 5)),
    "qr, full": (FULL, (5, 3)),
    "qr, pivots": (lambda a: jax.scipy.linalg.qr(a, mode="economic", pivoting=True)[:2], (4, 3)),
    "lu, square": (lambda a: jax.scipy.linalg.lu_factor(a)[0], (2, 4, 4)),
    "lu, tall": (lambda a: lax.linalg.lu(a)[0], (5, 3)),
    "lu, wide": (lambda a: lax.linalg.lu(a)[0], (3, 5)),
    "cholesky": (lambda a: jnp.linalg.cholesky(definite(a)), (2, 3, 3)),
    "eig": (eig, (4, 4)),
    "the eigenvalues": (jnp.linalg.eigvals, (4, 4)),
    "solve": (jnp.linalg.solve, (3, 3), (3, 2)),
    "lu_solve": (lu_solve, (3, 3), (3, 2)),
    "inv": (jnp.linalg.inv, (2, 3, 3)),
    "a triangular system": (triangular, (3, 3), (3, 2)),
    "expm": (jax.scipy.linalg.expm, (3, 3)),
    "tridiagonal": (tridiagonal, (5,), (5, 2)),
}
REAL = {
    "eig of reals": COMPLEX["eig"],
    "eigh of reals": COMPLEX["eigh"],
    "lstsq": (lambda a, b: jnp.linalg.lstsq(a, b)[0], (5, 3), (5, 2)),
    "pinv": (jnp.linalg.pinv, (4, 3)),
    "det": (jnp.linalg.det, (2, 3, 3)),
    "cho_solve": (
        lambda a, b: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(definite(a)), b),
        (3, 3),
        (3,),
    ),
    "the spectral norm": (lambda a: jnp.linalg.norm(a, 2), (4, 3)),
}
CASES = {name: (f, *(complex_(*s) for s in shapes)) for name, (f, *shapes) in COMPLEX.items()}
CASES |= {name: (f, *(real(*s) for s in shapes)) for name, (f, *shapes) in REAL.items()}


@pytest.fixture(autouse=True)
def quick_to_compile():
    """Each case is compiled and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pulled(transform, f, *primals):
    @jax.jit
    def run(*primals):
        outs, pullback = transform(f, *primals)
        leaves, tree = jax.tree.flatten(outs)
        cts = []
        for i, leaf in enumerate(leaves):
            parts = np.random.default_rng(i).normal(size=(2, *leaf.shape))
            ct = parts[0] + 1j * parts[1] if jnp.iscomplexobj(leaf) else parts[0]
            cts.append(jnp.asarray(ct, leaf.dtype))
        return pullback(jax.tree.unflatten(tree, cts))

    return run(*primals)


@pytest.mark.parametrize("name", CASES)
def test_a_factorisation_has_jaxs_gradient(name, x64):
    f, *primals = CASES[name]
    primals = [x.astype(jnp.promote_types(x.dtype, jnp.float64)) for x in primals]
    ours, jaxs = pulled(vjp, f, *primals), pulled(jax.vjp, f, *primals)
    assert g4(ours, jaxs)
    assert g1(ours, jaxs, depth=100)  # of eps 2e-16: the factors' own conditioning


def test_a_singular_value_is_pulled_back_to_the_product_of_its_vectors():
    """s₁ of diag(3, 1): e₁ e₁ᵀ."""
    found = grad(lambda a: jnp.linalg.svd(a)[1][0])(jnp.diag(jnp.array([3.0, 1.0])))
    np.testing.assert_allclose(found, [[1, 0], [0, 0]], atol=1e-6)


def test_an_eigenvector_turns_by_the_difference_of_the_eigenvalues():
    """The first entry of the last vector of [[1, x], [x, 3]] at x = 0: x / (3 − 1), up to sign."""

    def entry(x):
        v = jnp.linalg.eigh(jnp.array([[1.0, 0], [0, 3]]) + x * jnp.array([[0.0, 1], [1, 0]]))[1]
        return v[0, 1] / v[1, 1]

    np.testing.assert_allclose(grad(entry)(0.0), 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_where_values_meet_the_values_alone_still_have_a_gradient(name):
    """tr A is the sum of the eigenvalues of A = 1, however they are numbered."""
    f = {"eigh": lambda a: jnp.linalg.eigh(a)[0].sum(), "svd": lambda a: jnp.linalg.svd(a)[1].sum()}
    np.testing.assert_allclose(grad(f[name])(jnp.eye(3)), np.eye(3), atol=1e-6)
    vectors = {"eigh": lambda a: jnp.linalg.eigh(a)[1].sum(), "svd": lambda a: thin_svd(a)[0].sum()}
    ours, jaxs = grad(vectors[name])(jnp.eye(3)), jax.grad(vectors[name])(jnp.eye(3))
    assert g4(ours, jaxs)
    assert not np.all(np.isfinite(ours))


def test_eigh_of_a_triangle_is_differentiated_by_that_triangle():
    """w of [[2, x], [x, 2]] is 2 ± x: by the entry below alone, which stands for both, ±1."""
    f = functools.partial(lax.linalg.eigh, lower=True, symmetrize_input=False)
    a = jnp.array([[2.0, 7], [1, 2]])
    found = grad(lambda a: f(a)[1][1])(a)
    np.testing.assert_allclose(found, [[0.5, 0], [1, 0.5]], atol=1e-6)


REFUSED = {
    "svd": jnp.linalg.svd,
    "eig": lambda a: jnp.linalg.eig(a[:2])[1],
    "householder_product": lambda a: lax.linalg.householder_product(a, a[0, :2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_has_no_derivative_of_is_refused_by_name(name):
    def f(a):
        return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(REFUSED[name](a)))

    with pytest.raises(UnsupportedPrimitive, match=f"'{name}'"):
        grad(f)(real(3, 2))


SMOOTH = ["svd, wide"]


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_agree_in_all_four_nestings(name, x64):
    f, x = CASES[name]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float64))

    def energy(x):
        return sum(jnp.sum(jnp.sin(jnp.abs(leaf) ** 2)) for leaf in jax.tree.leaves(f(x)))

    def along(first):
        return lambda x: jnp.sum(jnp.sin(jnp.real(first(energy)(x))))

    expected = jax.jit(jax.grad(along(jax.grad)))(x)
    direction = jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape)
    forward = jax.jit(lambda x: jax.jvp(along(jax_like), (x,), (direction,))[1])(x)
    for outer, inner in [(jax_like, jax_like), (jax.grad, jax_like), (jax_like, jax.grad)]:
        found = jax.jit(outer(along(inner)))(x)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(forward, jnp.real(jnp.sum(expected * direction)), rtol=1e-9)


def jax_like(f):
    """Our gradient, also by complex numbers: ∂f/∂x − i ∂f/∂y, as jax.grad's of a real f is."""

    def gradient(x):
        out, pullback = vjp(f, x)
        return pullback(jnp.ones_like(out))[0]

    return gradient


RIGHT = dict(RULES)


def change(name, wrong):
    def rule(cts, outs, *inputs, **params):
        found = RIGHT[name](cts, outs, *inputs, **params)
        return tuple(None if c is None else (lambda c=c: wrong(c())) for c in found)

    return rule


def without(name, place):
    """The rule without the cotangent of one output."""

    def rule(cts, outs, *inputs, **params):
        cts = [jnp.zeros_like(ct) if i == place else ct for i, ct in enumerate(cts)]
        return RIGHT[name](cts, outs, *inputs, **params)

    return rule


def minus(g):
    return -g


WRONG = {
    "eigh without its vectors": ("eigh", "eigh", without("eigh", 0)),
    "eigh conjugated": ("eigh", "eigh", change("eigh", jnp.conj)),
    "a system, conjugated": (
        "a triangular system",
        "triangular_solve",
        change("triangular_solve", jnp.conj),
    ),
    "svd without V": ("svd, wide", "svd", without("svd", 2)),
    "svd conjugated": ("svd, wide", "svd", change("svd", jnp.conj)),
    "qr without R": ("qr, tall", "qr", without("qr", 1)),
    "qr without Q": ("qr, tall", "qr", without("qr", 0)),
    "lu, rows not put back": ("lu, tall", "lu", change("lu", lambda g: jnp.roll(g, 1, -2))),
    "tridiagonal negated": ("tridiagonal", "tridiagonal_solve", change("tridiagonal_solve", minus)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_rejected(wrong, monkeypatch):
    case, primitive, rule = WRONG[wrong]
    f, *primals = CASES[case]
    right = pulled(vjp, f, *primals)
    monkeypatch.setitem(RULES, primitive, rule)
    assert not g1(pulled(vjp, f, *primals), right, depth=1000)
