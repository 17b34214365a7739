"""Local gradients of the elementwise operations: ∂out/∂x, from the table of derivatives."""

import math

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import cast, inner, local_gradient, rule

# --- linear: the cotangent passes as it is, or scaled ---


@rule("add", "add_any")
def add(cts, outs, x, y):
    (ct,) = cts
    return (lambda: ct, lambda: ct)


@rule("sub")
def sub(cts, outs, x, y):
    (ct,) = cts
    return (lambda: ct, lambda: -ct)


@rule("neg")
def neg(cts, outs, x):
    (ct,) = cts
    return (lambda: -ct,)


@rule("reduce_precision")
def reduce_precision(cts, outs, x, **bits):
    """The cotangent is rounded too, as in JAX."""
    (ct,) = cts
    return (lambda: lax.reduce_precision(ct, **bits),)


@rule("convert_element_type")
def convert_element_type(cts, outs, x, *, new_dtype, **params):
    """A real number that became complex gets the real part."""
    (ct,) = cts
    return (lambda: cast(ct, x.dtype),)


@rule("nextafter")
def nextafter(cts, outs, x, y):
    """x and a step of one unit in the last place: the slope is 1, and y gives but the direction."""
    (ct,) = cts
    return (lambda: ct, None)


# --- products, quotients, powers ---


@rule("mul")
def mul(cts, outs, x, y, **params):
    """The product may be asked for in a wider dtype than its factors have."""
    (ct,) = cts

    def times(other, mine):
        return cast(ct * cast(other, ct.dtype), mine.dtype)

    return (lambda: times(y, x), lambda: times(x, y))


@rule("div")
def div(cts, outs, x, y):
    """d(x/y) = dx / y − (x/y) dy / y."""
    (ct,), (out,) = cts, outs

    def by_divisor():
        """Where y is stretched, as in softmax, the sum comes before the divisions, and is that of
        ct x: of the quotient it would be an array as large as x that nothing else reads."""
        if jnp.shape(y) == jnp.shape(out) or jnp.ndim(y) == 0:
            return -(ct * out) / y
        return -(inner(ct, x, y) / y) / y

    return (lambda: ct / y, by_divisor)


@rule("rem")
def rem(cts, outs, x, y):
    """x − y trunc(x / y)."""
    (ct,) = cts

    def trunc():
        return lax.sign(x / y) * lax.floor(lax.abs(x / y))

    return (lambda: ct, lambda: -ct * trunc())


@local_gradient("square")
def square(out, x):
    return (lambda: 2 * x,)


@local_gradient("one_minus_square")
def one_minus_square(out, x):
    return (lambda: -2 * x,)


@rule("polynomial")
def polynomial(cts, outs, x, *coefficients, **params):
    """Σ cₖ xᵏ: to x Σ k cₖ xᵏ⁻¹ by Horner's rule, to cₖ xᵏ."""
    (ct,) = cts

    def by_x():
        slope = jnp.zeros_like(x)
        for k, c in reversed(list(enumerate(coefficients))[1:]):
            slope = slope * x + k * c
        return ct * slope

    return (by_x, *((lambda k=k: ct * lax.integer_pow(x, k)) for k in range(len(coefficients))))


@local_gradient("integer_pow")
def integer_pow(out, x, *, y):
    return (lambda: jnp.zeros_like(x) if y == 0 else y * lax.integer_pow(x, y - 1),)


@local_gradient("pow")
def power(out, x, y):
    """y xʸ⁻¹ and xʸ log x. As in JAX, log x is taken as 0 at x = 0, and y xʸ⁻¹ as 0 for y = 0 where
    y is an integer; for the real y = 0.0 it is 0 · ∞ = NaN at x = 0."""

    def by_base():
        y_ = jnp.asarray(y, x.dtype)

        def with_exponent(e):
            return y_ * lax.pow(*jnp.broadcast_arrays(x, e))

        if exponent_is_real:
            return with_exponent(y_ - 1)
        exponent = jnp.where(y_ == 0, jnp.ones_like(y_), y_ - 1)
        return jnp.where(y_ == 0, jnp.zeros_like(out), with_exponent(exponent))

    def by_exponent():
        return jnp.log(jnp.where(x == 0, jnp.ones_like(x), x)) * out

    exponent_is_real = jnp.issubdtype(jnp.result_type(y), jnp.inexact)
    return (by_base, by_exponent if exponent_is_real else None)


@local_gradient("sqrt")
def sqrt(out, x):
    return (lambda: 0.5 / out,)


@local_gradient("rsqrt")
def rsqrt(out, x):
    return (lambda: -0.5 * out / x,)


@local_gradient("cbrt")
def cbrt(out, x):
    return (lambda: out / (3 * x),)


# --- exponentials and logarithms ---


@local_gradient("exp")
def exp(out, x):
    return (lambda: out,)


@local_gradient("exp2")
def exp2(out, x):
    return (lambda: math.log(2) * out,)


@local_gradient("expm1")
def expm1(out, x):
    return (lambda: out + 1,)


@rule("log")
def log(cts, outs, x, **params):
    (ct,) = cts
    return (lambda: ct / x,)


@rule("log2")
def log2(cts, outs, x, **params):
    (ct,) = cts
    return (lambda: ct / (math.log(2) * x),)


@rule("log1p")
def log1p(cts, outs, x, **params):
    (ct,) = cts
    return (lambda: ct / (1 + x),)


@local_gradient("logistic")
def logistic(out, x):
    return (lambda: out * (1 - out),)


# --- trigonometric and hyperbolic ---


@local_gradient("sin")
def sin(out, x):
    return (lambda: lax.cos(x),)


@local_gradient("cos")
def cos(out, x):
    return (lambda: -lax.sin(x),)


@local_gradient("tan")
def tan(out, x):
    return (lambda: 1 + out * out,)


@local_gradient("asin")
def asin(out, x):
    return (lambda: lax.rsqrt(1 - x * x),)


@local_gradient("acos")
def acos(out, x):
    return (lambda: -lax.rsqrt(1 - x * x),)


@local_gradient("atan")
def atan(out, x):
    return (lambda: 1 / (1 + x * x),)


@local_gradient("atan2")
def atan2(out, y, x):
    """Divided by the larger of the two first: x² + y² neither over- nor underflows."""

    def over(part):
        larger = lax.max(lax.abs(x), lax.abs(y))
        u, v = x / larger, y / larger
        return (part / larger) / (u * u + v * v) / larger

    return (lambda: over(x), lambda: -over(y))


@local_gradient("sinh")
def sinh(out, x):
    return (lambda: lax.cosh(x),)


@local_gradient("cosh")
def cosh(out, x):
    return (lambda: lax.sinh(x),)


@local_gradient("tanh")
def tanh(out, x):
    return (lambda: 1 - out * out,)


@local_gradient("asinh")
def asinh(out, x):
    return (lambda: lax.rsqrt(x * x + 1),)


@local_gradient("acosh")
def acosh(out, x):
    """1 / √(x² − 1); NaN below 1, where acosh is NaN, also where both factors are negative."""
    return (lambda: lax.rsqrt(x - 1) * lax.rsqrt(x + 1),)


@local_gradient("atanh")
def atanh(out, x):
    return (lambda: 1 / ((1 - x) * (1 + x)),)
