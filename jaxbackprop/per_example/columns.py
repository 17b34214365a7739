"""What δ and a of a dense network tell of each example.

The gradient of the cost Cᵢ of one example is an outer product in each layer,

    ∂Cᵢ/∂W = δᵢ aᵢᵀ,    ∂Cᵢ/∂b = δᵢ,

with the columns δᵢ of delta and aᵢ of the layer's input, which one forward and one backward pass
leave for all examples: these are the factors that a graph would have to be searched for.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxbackprop.backprop import backward, last
from jaxbackprop.forward import forward
from jaxbackprop.graph.unformed.leaves import Leaf, Term
from jaxbackprop.graph.unformed.sites import Site
from jaxbackprop.graph.unformed.views import View, view, within
from jaxbackprop.network import Network, Params

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.


def outer_products(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> list[Leaf]:
    """∇Cᵢ by W and b of each entry of params, W's unformed. Raises as `backprop`."""
    trace = forward(network, params, x)
    leaves = []
    for k, delta in enumerate(backward(network, params, trace, y).deltas):
        a = last(trace, k)[1]
        if delta.ndim == 3:
            a = jnp.concatenate([a[None], trace.activations[k + 1][:-1]])
        leaves += _layer(2 * k, params[k].W, delta, a)
    return leaves


def _layer(
    number: int,
    W: Float[Array, "*depth n p"],
    delta: Float[Array, "*depth n m"],
    a: Float[Array, "*depth p m"],
) -> tuple[Leaf, Leaf]:
    """δᵢ aᵢᵀ, of each layer of a stack its own, and δᵢ."""
    delta, a = jnp.swapaxes(delta, -1, -2), jnp.swapaxes(a, -1, -2)
    m = delta.shape[-2]
    of_W = Leaf(like(W), m, [Term(_product(_whole(number, W), W), a, delta)])
    b = jax.ShapeDtypeStruct((*W.shape[:-1], 1), W.dtype)
    return of_W, Leaf(b, m, [], jnp.moveaxis(delta, -2, 0)[..., None])


def _whole(number: int, W: Float[Array, "*depth n p"]) -> View:
    """All of W, of which each layer of a stack reads a slice."""
    whole = view(number, W.shape)
    return within(whole, W.shape[0], owned=True) if W.ndim == 3 else whole


def _product(seen: View, W: Float[Array, "*depth n p"]) -> Site:
    """W a for one example, as an operation of a graph."""
    n, p = seen.shape
    product = jax.make_jaxpr(lax.dot)(
        jax.ShapeDtypeStruct((n, p), W.dtype), jax.ShapeDtypeStruct((p,), W.dtype)
    )
    return Site(product.jaxpr.eqns[-1], 0, seen)


def like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
