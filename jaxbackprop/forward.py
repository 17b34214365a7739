"""The forward pass, and what stands at its end: the cost, and the error that goes back from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbackprop.equations import output_error
from jaxbackprop.network import Network, Params, Trace, layers_in
from jaxbackprop.refusals import check_columns, check_is_trace, check_params, check_targets

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.


def forward(network: Network, params: Params, x: Float[Array, "p m"]) -> Trace:
    """The forward pass: zˡ = Wˡ aˡ⁻¹ + bˡ, aˡ = σ(zˡ), every z and a kept.

    Raises ValueError where the shape or dtype of x or of an entry of params does not fit.
    """
    check_params(network, params)
    check_columns("x", x, network.sizes[0], params)
    a, l, zs, activations = x, 0, [], [x]
    for layer in params:
        l += layers_in(layer)
        sigma = network.sigma(l)

        def step(a, layer, sigma=sigma):
            z = layer.W @ a + layer.b
            a = sigma.value(z)
            return a, (z, a)

        a, (z, kept) = jax.lax.scan(step, a, layer) if layer.W.ndim == 3 else step(a, layer)
        zs.append(z)
        activations.append(kept)
    return Trace(tuple(zs), tuple(activations))


def cost(network: Network, trace: Trace, y: Float[Array, "n m"]) -> Float[Array, ""]:
    """C = (1/m) Σᵢ Cᵢ of a forward pass. Raises ValueError where y does not fit the output."""
    check_is_trace(trace)
    check_targets(trace.activations[-1], y)
    return jnp.mean(network.cost.cost(trace.zs[-1], trace.activations[-1], y))


def loss(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Float[Array, ""]:
    """C = (1/m) Σᵢ Cᵢ as a function of the parameters: what jax.grad differentiates."""
    return cost(network, forward(network, params, x), y)


def last_error(network: Network, trace: Trace, y: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """δᴸ: the simplified form where loss and output have one, else BP1."""
    z, a = trace.zs[-1], trace.activations[-1]
    if network.cost.error is not None:
        return network.cost.error(a, y)
    sigma = network.sigma(network.depth)
    return output_error(network.cost.gradient(a, y), sigma.derivative(z, a))
