r"""The losses: C and ∇ₐC, side by side, and the output errors that simplify.

A loss is a sum over the output neurons of one example; the network's cost is the mean over the m
examples (`jaxbackprop.forward.loss`), and the 1/m stands in BP3 and BP4.

Two pairs of output activation and loss simplify BP1. With a = σ(z) and binary cross-entropy,

    ∇ₐC ⊙ σ′ = (a − y)/(a(1 − a)) ⊙ a(1 − a) = a − y,

and with a = softmax(z) and C = −Σⱼ yⱼ log aⱼ, where Σⱼ yⱼ = s,

    ∂C/∂zₖ = −Σⱼ yⱼ (1[j=k] − aₖ) = s aₖ − yₖ,     which is a − y where y is a distribution.

These costs are computed from the logits z: log a is −inf as soon as a rounds to 0. The shortcut
does *not* hold for the squared error behind a sigmoid, whose error is (a − y) ⊙ a(1 − a); its
twin there is the identity, with δ = a − y.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Legend: n output neurons, m examples.
Columns = Float[Array, "n m"]
PerExample = Float[Array, " m"]


class Loss(NamedTuple):
    """C of each example, and ∇ₐC; for a fused pair also δᴸ = ∂C/∂z and its output activation.

    `cost(z, a, y)` reads either the logits z or the activations a.
    """

    name: str
    cost: Callable[[Columns, Columns, Columns], PerExample]
    gradient: Callable[[Columns, Columns], Columns]
    error: Callable[[Columns, Columns], Columns] | None = None
    output: str | None = None


def squared_error(z: Columns, a: Columns, y: Columns) -> PerExample:
    """C = ½‖a − y‖²."""
    return 0.5 * jnp.sum((a - y) ** 2, axis=0)


def squared_error_gradient(a: Columns, y: Columns) -> Columns:
    """∇ₐC = a − y."""
    return a - y


def binary_cross_entropy(z: Columns, a: Columns, y: Columns) -> PerExample:
    """C = −Σ y log a + (1 − y) log(1 − a) = Σ log(1 + eᶻ) − yz, for 0 ≤ y ≤ 1."""
    return jnp.sum(jax.nn.softplus(z) - y * z, axis=0)


def binary_cross_entropy_gradient(a: Columns, y: Columns) -> Columns:
    """∇ₐC = (a − y) / (a(1 − a))."""
    return (a - y) / (a * (1 - a))


def sigmoid_error(a: Columns, y: Columns) -> Columns:
    """δᴸ = a − y (BP1, simplified)."""
    return a - y


def cross_entropy(z: Columns, a: Columns, y: Columns) -> PerExample:
    """C = −Σ y log a = s log Σ eᶻ − Σ y z with s = Σ y, for y ≥ 0.

    With the largest z at 0, which takes nothing from C, neither term is negative: none cancels.
    """
    z = z - jax.lax.stop_gradient(jnp.max(z, axis=0))
    s = jnp.sum(y, axis=0)
    return s * jnp.log(jnp.sum(jnp.exp(z), axis=0)) - jnp.sum(y * z, axis=0)


def cross_entropy_gradient(a: Columns, y: Columns) -> Columns:
    """∇ₐC = −y / a."""
    return -y / a


def softmax_error(a: Columns, y: Columns) -> Columns:
    """δᴸ = (Σⱼ yⱼ) a − y (BP1, simplified): a − y where the columns of y sum to 1."""
    return jnp.sum(y, axis=0, keepdims=True) * a - y


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("squared_error", squared_error, squared_error_gradient),
        Loss(
            "binary_cross_entropy",
            binary_cross_entropy,
            binary_cross_entropy_gradient,
            sigmoid_error,
            output="sigmoid",
        ),
        Loss(
            "cross_entropy", cross_entropy, cross_entropy_gradient, softmax_error, output="softmax"
        ),
    )
}
