"""Local gradients of the special functions: error, gamma, beta and Bessel functions."""

import math

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import UnsupportedPrimitive, local_gradient, rule

TWO_OVER_SQRT_PI = 2 / math.pi**0.5  # a Python float takes the dtype of what it meets


@local_gradient("erf")
def erf(out, x):
    return (lambda: TWO_OVER_SQRT_PI * lax.exp(-x * x),)


@local_gradient("erfc")
def erfc(out, x):
    return (lambda: -TWO_OVER_SQRT_PI * lax.exp(-x * x),)


@local_gradient("erf_inv")
def erf_inv(out, x):
    return (lambda: 1 / TWO_OVER_SQRT_PI * lax.exp(out * out),)


@local_gradient("bessel_i0e")
def bessel_i0e(out, x):
    """e^-|x| I₀(x): I₀′ = I₁."""
    return (lambda: lax.bessel_i1e(x) - lax.sign(x) * out,)


@local_gradient("bessel_i1e")
def bessel_i1e(out, x):
    """e^-|x| I₁(x): I₁′ = I₀ − I₁ / x, which is ½ at 0."""

    def slope():
        small = lax.abs(x) <= float(jnp.finfo(x.dtype).eps)
        safe = jnp.where(small, jnp.ones_like(x), x)
        return jnp.where(
            small, 0.5 * jnp.ones_like(x), lax.bessel_i0e(x) - out * (lax.sign(x) + 1 / safe)
        )

    return (slope,)


@local_gradient("lgamma")
def lgamma(out, x):
    return (lambda: lax.digamma(x),)


@local_gradient("igamma")
def igamma(out, a, x):
    """P(a, x) = 1/Γ(a) ∫₀ˣ tᵃ⁻¹ e⁻ᵗ dt: to x the integrand."""
    return (lambda: lax.igamma_grad_a(a, x), lambda: _gamma_density(a, x))


@local_gradient("igammac")
def igammac(out, a, x):
    """1 − P(a, x)."""
    return (lambda: -lax.igamma_grad_a(a, x), lambda: -_gamma_density(a, x))


def _gamma_density(a, x):
    return lax.exp(-x + (a - 1) * lax.log(x) - lax.lgamma(a))


@local_gradient("digamma")
def digamma(out, x):
    return (lambda: lax.polygamma(jnp.ones_like(x), x),)


@local_gradient("polygamma")
def polygamma(out, m, x):
    def by_order():
        raise UnsupportedPrimitive("no rule for 'polygamma' by its order m, as in jax")

    return (by_order, lambda: lax.polygamma(m + 1, x))


@local_gradient("regularized_incomplete_beta")
def betainc(out, a, b, x):
    """I(x; a, b) = 1/B(a, b) ∫₀ˣ tᵃ⁻¹ (1 − t)ᵇ⁻¹ dt: to x the integrand."""

    def by_shape():
        raise UnsupportedPrimitive(
            "no rule for 'regularized_incomplete_beta' by a or b, as in jax: "
            "put jax.lax.stop_gradient around them if they are constants"
        )

    def by_x():
        of_ab = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
        return lax.exp((b - 1) * lax.log1p(-x) + (a - 1) * lax.log(x) - of_ab)

    return (by_shape, by_shape, by_x)


@rule("random_gamma")
def random_gamma(cts, outs, key, a, *, log_space):
    """A sample z with F(z; a) = u, u held: dz/da = −∂F/∂a / ∂F/∂z, and that over z for log z.

    (M. Figurnov, S. Mohamed and A. Mnih, *Implicit reparameterization gradients*, 2018.)
    """
    (ct,), (out,) = cts, outs

    def by_a():
        z = jnp.maximum(lax.exp(out), jnp.finfo(out.dtype).tiny) if log_space else out
        slope = lax.random_gamma_grad(a, z)  # pyright: ignore[reportCallIssue] (it takes no dtype)
        return ct * (slope / z if log_space else slope)

    return (None, by_a)
