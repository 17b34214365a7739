"""Second derivatives in all four nestings of our gradient and jax's, beside those of jax alone.

A nesting takes (f, xs, directions), f a real function of all the xs, and gives H d: the gradient of
f's slope along the directions, or what the gradient gains along them.
"""

import jax
import jax.numpy as jnp

import jaxbackprop


def pairing(cts, values):
    """Σ Re(c z)."""
    pairs = zip(jax.tree.leaves(cts), jax.tree.leaves(values), strict=True)
    return sum(jnp.sum(jnp.real(c * z)) for c, z in pairs)


def nested(outer, inner):
    def second(f, xs, directions):
        return outer(lambda xs: pairing(inner(f)(xs), directions))(xs)

    return second


def pushed(inner):
    return lambda f, xs, directions: jax.jvp(inner(f), (xs,), (directions,))[1]


OURS, JAX = jaxbackprop.grad, jax.grad
JAXS_NESTED, JAXS_PUSHED = nested(JAX, JAX), pushed(JAX)

# Each nesting, and what jax has in its place.
NESTINGS = {
    "grad(grad)": (nested(OURS, OURS), JAXS_NESTED),
    "jax.grad(grad)": (nested(JAX, OURS), JAXS_NESTED),
    "grad(jax.grad)": (nested(OURS, JAX), JAXS_NESTED),
    "jax.jvp(grad)": (pushed(OURS), JAXS_PUSHED),
}


def traced(second, f, xs, directions):
    """The graph of a second derivative; of jax.jvp of a custom_vjp there is one that cannot run."""
    closed, shape = jax.make_jaxpr(lambda xs: second(f, xs, directions), return_shape=True)(xs)
    if "custom_lin" in str(closed):
        raise NotImplementedError("jax.jvp of a custom_vjp")
    out = jax.tree.structure(shape)
    return lambda xs: out.unflatten(jax.extend.core.jaxpr_as_fun(closed)(*jax.tree.leaves(xs)))


def by_differences(f, xs, directions, h, gradient=JAX):
    """H d from two gradients."""

    def at(t):
        return gradient(f)(jax.tree.map(lambda x, d: x + t * d, xs, directions))

    return jax.tree.map(lambda a, b: (a - b) / (2 * h), at(h), at(-h))
