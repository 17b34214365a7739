"""The activation functions: σ and its derivative σ′, side by side.

Every entry is applied element by element, except softmax, whose outputs depend on each other:
its Jacobian is no σ′, and it appears only together with the cross-entropy loss
(`jaxbackprop.losses`).

A derivative is written from `a = σ(z)` wherever that is possible, so that the backward pass needs
one array a layer. For sigmoid and tanh that form loses every digit once a rounds to 1; the
`precise_` entries compute the same σ′ from z instead, to a few units in the last place.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, "..."]


class Activation(NamedTuple):
    """A function σ with its derivative: the two halves that forward and backward pass need.

    `derivative(z, a)` is σ′(z), given z and a = σ(z). `from_a` says that it reads only a: the
    backward pass then stores no z. `scheme` is the initialisation that keeps the signal's
    variance: "he" where σ halves it, "xavier" otherwise.
    """

    name: str
    value: Callable[[Values], Values]
    derivative: Callable[[Values, Values], Values]
    from_a: bool = True
    scheme: str = "xavier"


def sigmoid_derivative(z: Values, a: Values) -> Values:
    """σ′ = a(1 − a), as the text and jax.grad have it: 0 for z > 17 in float32."""
    return a * (1 - a)


def precise_sigmoid_derivative(z: Values, a: Values) -> Values:
    """σ′ = s(1 − s) with s = σ(−|z|) ≤ ½: no cancellation, since 1 − s loses nothing."""
    s = jax.nn.sigmoid(-jnp.abs(z))
    return s * (1 - s)


def tanh_derivative(z: Values, a: Values) -> Values:
    """tanh′ = 1 − a², as the text and jax.grad have it: 0 for |z| > 9 in float32."""
    return 1 - a * a


def precise_tanh_derivative(z: Values, a: Values) -> Values:
    """tanh′(z) = 4 σ′(2z), from tanh(z) = 2σ(2z) − 1."""
    return 4 * precise_sigmoid_derivative(2 * z, a)


def relu_derivative(z: Values, a: Values) -> Values:
    """1 where z > 0. At the kink z = 0 the choice is 0, as in jax.nn.relu."""
    return (a > 0).astype(a.dtype)


def relu_one_derivative(z: Values, a: Values) -> Values:
    """1 where z ≥ 0: the other choice at the kink. It reads z, since a cannot tell 0 from −1."""
    return (z >= 0).astype(z.dtype)


LEAK = 0.01


def leaky_relu_derivative(z: Values, a: Values) -> Values:
    """1 where z ≥ 0, else the leak 0.01. At the kink the choice is 1, as in jax.nn.leaky_relu."""
    return jnp.where(a >= 0, jnp.ones_like(a), LEAK)


def elu_derivative(z: Values, a: Values) -> Values:
    """1 where z > 0, else eᶻ = a + 1."""
    return jnp.where(a > 0, jnp.ones_like(a), a + 1)


def gelu(z: Values) -> Values:
    """z Φ(z) in the tanh form of Hendrycks and Gimpel (2016), as jax.nn.gelu's default."""
    return jax.nn.gelu(z, approximate=True)


def gelu_derivative(z: Values, a: Values) -> Values:
    """With u = √(2/π)(z + 0.044715 z³): ½(1 + tanh u) + ½ z (1 − tanh² u) u′."""
    c = (2 / jnp.pi) ** 0.5
    t = jnp.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)


def silu_derivative(z: Values, a: Values) -> Values:
    """(zσ)′ = σ + zσ(1 − σ)."""
    s = jax.nn.sigmoid(z)
    return s * (1 + z * (1 - s))


def softplus_derivative(z: Values, a: Values) -> Values:
    """log(1 + eᶻ)′ = σ(z)."""
    return jax.nn.sigmoid(z)


def identity_derivative(z: Values, a: Values) -> Values:
    """z′ = 1."""
    return jnp.ones_like(a)


def softmax(z: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """aⱼ = exp zⱼ / Σₖ exp zₖ, down each column: one distribution an example."""
    return jax.nn.softmax(z, axis=0)


def softmax_derivative(z: Values, a: Values) -> Values:
    """Refuse: ∂aⱼ/∂zₖ = aⱼ(1[j=k] − aₖ) is a matrix an example, not a σ′."""
    raise ValueError("softmax has a Jacobian in place of σ′: use it with loss='cross_entropy'")


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("sigmoid", jax.nn.sigmoid, sigmoid_derivative),
        Activation("precise_sigmoid", jax.nn.sigmoid, precise_sigmoid_derivative, from_a=False),
        Activation("tanh", jnp.tanh, tanh_derivative),
        Activation("precise_tanh", jnp.tanh, precise_tanh_derivative, from_a=False),
        Activation("relu", jax.nn.relu, relu_derivative, scheme="he"),
        Activation("relu_one", jax.nn.relu, relu_one_derivative, from_a=False, scheme="he"),
        Activation("leaky_relu", jax.nn.leaky_relu, leaky_relu_derivative, scheme="he"),
        Activation("elu", jax.nn.elu, elu_derivative, scheme="he"),
        Activation("gelu", gelu, gelu_derivative, from_a=False, scheme="he"),
        Activation("silu", jax.nn.silu, silu_derivative, from_a=False, scheme="he"),
        Activation("softplus", jax.nn.softplus, softplus_derivative, from_a=False, scheme="he"),
        Activation("identity", lambda z: z, identity_derivative),
        Activation("softmax", softmax, softmax_derivative),
    )
}
