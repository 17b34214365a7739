"""Complex numbers: their parts, and what is made of both parts.

JAX's convention: the cotangent c of z = x + iy stands for the linear form dz ↦ Re(c dz), so
c = ∂f/∂x − i ∂f/∂y for a real f. Where an operation is holomorphic its cotangent is ct · f′(z),
without conjugation, and every rule for the reals holds as it is; a real input gets the real part.
The operations here are those that are not holomorphic.
"""

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import rule


def is_complex(x):
    return jnp.issubdtype(x.dtype, jnp.complexfloating)


@rule("real")
def real(cts, outs, x):
    """Re(c dz) = ct dx."""
    (ct,) = cts
    return (lambda: lax.complex(ct, jnp.zeros_like(ct)),)


@rule("imag")
def imag(cts, outs, x):
    """Re(−i ct dz) = ct dy."""
    (ct,) = cts
    return (lambda: lax.complex(jnp.zeros_like(ct), -ct),)


@rule("complex")
def complex_(cts, outs, x, y):
    """Re(ct (dx + i dy)) = Re(ct) dx − Im(ct) dy."""
    (ct,) = cts
    return (lambda: lax.real(ct), lambda: -lax.imag(ct))


@rule("conj")
def conj(cts, outs, x, **params):
    """Re(ct z̄) = Re(c̄t z). It makes a real number complex, with the imaginary part 0."""
    (ct,) = cts
    return (lambda: lax.conj(ct) if is_complex(x) else lax.real(ct),)


@rule("abs")
def absolute(cts, outs, x):
    """d|z| = Re(z̄ dz) / |z|, 0 at 0. For the reals sign(x), where at 0 the choice is JAX's, 1."""
    (ct,), (out,) = cts, outs

    def of_complex():
        unit = lax.conj(x) / lax.complex(jnp.where(out == 0, 1, out), jnp.zeros_like(out))
        return lax.complex(ct, jnp.zeros_like(ct)) * unit

    return (of_complex if is_complex(x) else (lambda: jnp.where(x >= 0, ct, -ct)),)


@rule("sign")
def sign(cts, outs, x):
    """u = z / |z| turns by Im(ū dz) / |z|, so i ū Im(ct u) / |z|; 0 at 0. A real sign is flat.

    (jax before 0.12 takes it for flat everywhere, so u is not taken from lax.sign: the rule itself
    may be differentiated by jax.)
    """
    (ct,) = cts

    def back():
        size = lax.abs(x)
        size = jnp.where(size == 0, 1, size)
        u = x / lax.complex(size, jnp.zeros_like(size))
        turn = lax.imag(ct * u) / size
        return lax.complex(jnp.zeros_like(turn), turn) * lax.conj(u)

    return (back if is_complex(x) else None,)
