"""Complex numbers inside functions of real arguments, and jax's convention for complex ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import g1, g4
from jax import lax

from jaxbackprop import grad
from jaxbackprop.graph import vjp
from jaxbackprop.graph.rules import RULES

rng = np.random.default_rng(0)


def real(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def complex_(*shape):
    return lax.complex(real(*shape), real(*shape))


def hermitian(a):
    return a @ a.conj().T + jnp.eye(a.shape[0], dtype=a.dtype)


# Real scalars of real arguments, with complex numbers between.
REAL = {
    "|fft|": (lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x))), real(8)),
    "rfft": (lambda x: jnp.sum(jnp.abs(jnp.fft.rfft(x, 7)) ** 2), real(6)),
    "irfft": (lambda x: jnp.sum(jnp.fft.irfft(x.astype(complex), 5) ** 3), real(5)),
    "rfft2 and back": (
        lambda x: jnp.sum(jnp.sin(jnp.fft.irfft2(jnp.fft.rfft2(x) ** 2, (3, 4)))),
        real(3, 4),
    ),
    "a convolution by fft": (
        lambda x, w: jnp.sum(jax.scipy.signal.fftconvolve(x, w) ** 2),
        real(9),
        real(4),
    ),
    "parts": (
        lambda x, y: jnp.sum(
            jnp.real(lax.complex(x, y) ** 2) * jnp.imag(jnp.exp(lax.complex(y, x)))
        ),
        real(4),
        real(4),
    ),
    "a phase": (lambda x: jnp.sum(jnp.angle(jnp.exp(1j * x) + 2)), real(4)),
    "a power": (lambda x, y: jnp.abs(jnp.sum((x + 1j) ** (y - 2j))), real(4), real(4)),
    "a quotient": (lambda x: jnp.sum(jnp.abs((1 + 1j * x) / (2 - 1j * x * x))), real(4)),
    "a product of matrices": (
        lambda x, y: jnp.sum(jnp.abs((x + 1j * y) @ (y - 2j * x).T.conj())),
        real(3, 4),
        real(3, 4),
    ),
    "a complex convolution": (
        lambda x, w: jnp.sum(jnp.abs(jnp.convolve(x + 1j, w * 1j + x[0]))),
        real(6),
        real(3),
    ),
    "a determinant": (lambda x: jnp.linalg.slogdet(x + 1j * jnp.eye(3))[1], real(3, 3)),
    "a system": (
        lambda x, b: jnp.sum(jnp.abs(jnp.linalg.solve(x + 1j * jnp.eye(3), b.astype(complex)))),
        real(3, 3),
        real(3),
    ),
    "abs at 0": (lambda x: jnp.sum(jnp.abs(lax.complex(x, 0 * x))), jnp.array([0.0, 2, -3])),
    "an average and a maximum": (
        lambda x: jnp.abs(jnp.max(jnp.mean(lax.complex(x, -x) ** 3, 0))),
        real(3, 4),
    ),
    "a sum of roots": (lambda x: jnp.real(jnp.sum(jnp.exp(2j * jnp.pi * x[:, None] * x))), real(4)),
}

# Holomorphic or not, a pullback at a complex cotangent.
PULLBACKS = {
    "exp": (jnp.exp, complex_(4)),
    "log": (jnp.log, complex_(4)),
    "sqrt": (jnp.sqrt, complex_(4)),
    "tanh": (jnp.tanh, complex_(4)),
    "power": (lambda z: z**3, complex_(4)),
    "quotient": (lambda z, w: z / w, complex_(4), complex_(4)),
    "conj": (jnp.conj, complex_(4)),
    "conj of a real": (lambda x: lax.conj_p.bind(x, input_dtype=x.dtype), real(4)),
    "abs": (jnp.abs, complex_(4)),
    "angle": (jnp.angle, complex_(4)),
    "real": (jnp.real, complex_(4)),
    "imag": (jnp.imag, complex_(4)),
    "complex": (lax.complex, real(4), real(4)),
    "a real operand promoted": (lambda x, z: x * z, real(4), complex_(4)),
    "dot": (jnp.dot, complex_(2, 3), complex_(3, 2)),
    "fft": (jnp.fft.fft, complex_(6)),
    "ifft2": (jnp.fft.ifft2, complex_(3, 4)),
    "rfft, even": (jnp.fft.rfft, real(6)),
    "rfft, odd": (jnp.fft.rfft, real(5)),
    "irfft, even": (lambda z: jnp.fft.irfft(z, 6), complex_(4)),
    "irfft, odd": (lambda z: jnp.fft.irfft(z, 7), complex_(4)),
    "rfftn": (jnp.fft.rfftn, real(2, 3, 4)),
    "irfftn": (lambda z: jnp.fft.irfftn(z, (2, 3, 4)), complex_(2, 3, 3)),
    "hfft": (lambda z: jnp.fft.hfft(z, 6), complex_(4)),
    "cumprod": (lambda z: jnp.cumprod(z), complex_(4)),
    "prod": (lambda z: jnp.prod(z), complex_(4)),
    "max": (lambda z, w: jnp.maximum(z, w), complex_(4), complex_(4)),
    "sort": (jnp.sort, complex_(5)),
    "gather": (lambda z: z[jnp.array([1, 1, 3])], complex_(4)),
    "scatter": (lambda z, w: z.at[jnp.array([1, 1])].set(w), complex_(4), complex_(2)),
    "acosh, right of the imaginary axis": (lambda z: jnp.arccosh(1 + z * z.conj()), complex_(4)),
}


@pytest.fixture(autouse=True)
def quick_to_compile():
    """Each case is compiled and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pulled(transform, f, *primals):
    """The pullback at a cotangent that is the same for every transform."""

    @jax.jit
    def run(*primals):
        out, pullback = transform(f, *primals)
        parts = np.random.default_rng(1).normal(size=(2, *out.shape))
        ct = parts[0] + 1j * parts[1] if jnp.iscomplexobj(out) else parts[0]
        return pullback(jnp.asarray(ct, out.dtype))

    return run(*primals)


@pytest.mark.parametrize("name", REAL)
def test_complex_numbers_between_reals_give_jaxs_gradient(name):
    f, *args = REAL[name]
    every = tuple(range(len(args)))
    ours, jaxs = (jax.jit(transform(f, every))(*args) for transform in (grad, jax.grad))
    assert g4(ours, jaxs)
    assert g1(ours, jaxs, depth=2)


@pytest.mark.parametrize("name", PULLBACKS)
def test_a_pullback_has_jaxs_convention(name):
    if name == "max" and jax.__version_info__ >= (0, 11):
        pytest.skip("jax itself no longer differentiates the maximum of complex numbers")
    f, *args = PULLBACKS[name]
    ours, jaxs = pulled(vjp, f, *args), pulled(jax.vjp, f, *args)
    assert g4(ours, jaxs)
    assert g1(ours, jaxs, depth=1)


def test_a_real_function_of_x_and_y_has_the_cotangent_f_x_minus_i_f_y():
    """f = x² y at 2 + 3i: ∂f/∂x = 12, ∂f/∂y = 4."""
    _, pullback = vjp(lambda z: jnp.real(z) ** 2 * jnp.imag(z), jnp.complex64(2 + 3j))
    np.testing.assert_allclose(pullback(jnp.float32(1))[0], 12 - 4j, rtol=1e-6)


def test_the_energy_of_a_spectrum_is_that_of_the_signal():
    """Parseval: Σ|X|² = n Σx², so the gradient is 2 n x."""
    x = real(8)
    energy = grad(lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2))(x)
    assert g1(energy, 2 * 8 * x, depth=1)


def test_a_sign_turns_with_its_number_and_does_not_follow_its_size():
    """sign(z) at 2 is 1: dz = i h turns it by h / 2, dz = h leaves it."""
    _, pullback = vjp(jnp.sign, jnp.complex64(2))
    assert np.array_equal(pullback(jnp.complex64(1)), [0])
    assert np.array_equal(pullback(jnp.complex64(-1j)), [-0.5j])  # Re(c dz) = h / 2
    assert np.array_equal(grad(lambda x: x * jnp.sign(x))(-3.0), -1.0)


def test_acosh_left_of_the_imaginary_axis_has_the_sign_of_its_own_slope():
    z, h = jnp.complex64(-2 - 1.5j), 1e-2
    _, pullback = vjp(jnp.arccosh, z)
    slope = (jnp.arccosh(z + h) - jnp.arccosh(z - h)) / (2 * h)
    np.testing.assert_allclose(pullback(jnp.complex64(1))[0], slope, rtol=1e-3)


@pytest.mark.parametrize("name", ["rfft2 and back", "a power", "a system"])
def test_second_derivatives_agree_in_all_four_nestings(name):
    f, x, *rest = REAL[name]

    def along(first):
        return lambda x: jnp.sum(jnp.sin(first(lambda x: f(x, *rest))(x)))

    expected = jax.jit(jax.grad(along(jax.grad)))(x)
    direction = jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape)
    forward = jax.jit(lambda x: jax.jvp(along(grad), (x,), (direction,))[1])(x)
    for outer, inner in [(grad, grad), (jax.grad, grad), (grad, jax.grad)]:
        found = jax.jit(outer(along(inner)))(x)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(forward, jnp.vdot(expected, direction), rtol=2e-3)


def change(name, wrong):
    def rule(cts, outs, *inputs, **params):
        found = RIGHT[name](cts, outs, *inputs, **params)
        return tuple(None if c is None else (lambda c=c: wrong(c())) for c in found)

    return rule


RIGHT = dict(RULES)
WRONG = {
    "the product conjugated": ("exp", "exp", jnp.conj),
    "imag without its sign": ("imag", "imag", lambda g: -g),
    "conj as the identity": ("conj", "conj", jnp.conj),
    "abs along z, not its conjugate": ("abs", "abs", jnp.conj),
    "complex without the sign of its second": ("complex", "complex", jnp.abs),
    "the half spectrum counted once": ("rfft, even", "fft", lambda g: g.at[1].multiply(0.5)),
    "the whole spectrum counted twice": ("irfft, odd", "fft", lambda g: g.at[0].multiply(2)),
    "the highest frequency of an odd length alone": (
        "irfft, odd",
        "fft",
        lambda g: g.at[-1].multiply(0.5),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_rejected(wrong, monkeypatch):
    case, primitive, alter = WRONG[wrong]
    f, *args = PULLBACKS[case]
    monkeypatch.setitem(RULES, primitive, change(primitive, alter))
    assert not g1(pulled(vjp, f, *args), pulled(jax.vjp, f, *args), depth=1)
