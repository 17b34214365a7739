"""The four equations of backpropagation, in matrix form: examples are columns.

Notation, with layers counted forward, l = 1 … L, and m examples:

    z = W a_prev + b    the weighted inputs          a = σ(z)     the activations
    delta = ∂Cᵢ/∂z      the error of each example    ⊙            product element by element

After M. Nielsen, *Neural Networks and Deep Learning* (2015), chapter 2. The errors are those of the
single examples; the cost is their mean, and its 1/m stands in BP3 and BP4.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Legend: n neurons of layer l, p of the previous layer, q of the next one, m examples.


def output_error(
    grad_a: Float[Array, "n m"], sigma_prime: Float[Array, "n m"]
) -> Float[Array, "n m"]:
    """BP1: δᴸ = ∇ₐC ⊙ σ′(zᴸ)."""
    return grad_a * sigma_prime


def hidden_error(
    W_next: Float[Array, "q n"],
    delta_next: Float[Array, "q m"],
    sigma_prime: Float[Array, "n m"],
) -> Float[Array, "n m"]:
    """BP2: δˡ = ((Wˡ⁺¹)ᵀ δˡ⁺¹) ⊙ σ′(zˡ)."""
    return (W_next.T @ delta_next) * sigma_prime


def weight_gradient(delta: Float[Array, "n m"], a_prev: Float[Array, "p m"]) -> Float[Array, "n p"]:
    """BP3: ∂C/∂Wˡ = (1/m) δˡ (aˡ⁻¹)ᵀ."""
    return delta @ a_prev.T / delta.shape[1]


def bias_gradient(delta: Float[Array, "n m"]) -> Float[Array, "n 1"]:
    """BP4: ∂C/∂bˡ = (1/m) Σᵢ δˡᵢ."""
    return jnp.sum(delta, axis=1, keepdims=True) / delta.shape[1]
