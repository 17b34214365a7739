"""What δ and a tell of each example: quantities that autodiff gets by one gradient an example.

The gradient of the cost Cᵢ of one example is an outer product in each layer,

    ∂Cᵢ/∂W = δᵢ aᵢᵀ,    ∂Cᵢ/∂b = δᵢ,

with the columns δᵢ of delta and aᵢ of the layer's input, which one forward and one backward pass
leave for all examples. Norms, moments and weighted means follow from these columns; only
`gradients` ever holds the outer products themselves.

Everything here is about the Cᵢ, whose mean is the cost: nothing carries a 1/m that its definition
does not name. Parameters with a stack give results with its leading axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbackprop.backprop import backward, last, layer_gradient
from jaxbackprop.forward import forward
from jaxbackprop.network import Layer, Network, Params

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

Columns = tuple[Float[Array, "*_ _ m"], Float[Array, "*_ _ m"]]


def gradient_norms(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Float[Array, " m"]:
    """‖∇Cᵢ‖ of each example over all parameters, not divided by m.

    ‖δᵢ aᵢᵀ‖² = ‖δᵢ‖² ‖aᵢ‖², so ‖∇Cᵢ‖² = Σ over layers of ‖δᵢ‖² (‖aᵢ‖² + 1): no gradient is formed
    (Goodfellow, "Efficient per-example gradient computations", 2015). Raises as `backprop`.
    """
    return _norms(_columns(network, params, x, y)).astype(x.dtype)


def gradients(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Params:
    """∇Cᵢ of each example, shaped as params with a first axis of m; their mean is ∇C.

    m times the memory of the parameters: the other functions need none of it. Raises as `backprop`.
    """
    return tuple(
        Layer(
            jnp.einsum("...nm,...pm->m...np", delta, a),
            jnp.moveaxis(delta, -1, 0)[..., None],
        )
        for delta, a in _columns(network, params, x, y)
    )


def clipped_mean(
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    max_norm: float | Float[Array, ""],
) -> Params:
    """(1/m) Σᵢ cᵢ ∇Cᵢ with cᵢ = min(1, max_norm / ‖∇Cᵢ‖), shaped as params.

    The clipped gradient of differentially private training (Abadi et al., 2016), as a mean: the
    noise that goes with it has a standard deviation of σ max_norm / m. The coefficients come from
    the norms, and the weighted mean from BP3 and BP4 on the errors cᵢ δᵢ.

    Raises ValueError for a max_norm that is not positive, else as `backprop`.
    """
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}, expected a positive number")
    columns = _columns(network, params, x, y)
    share = jnp.minimum(1, max_norm / _norms(columns)).astype(x.dtype)
    return tuple(_mean(share * delta, a) for delta, a in columns)


def second_moment(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Params:
    """(1/m) Σᵢ (∇Cᵢ)² of each parameter, shaped as params.

    (δ aᵀ)² = δ² (a²)ᵀ entry by entry, so it is BP3 and BP4 on squares, (1/m) (δ∘δ)(a∘a)ᵀ (BackPACK:
    Dangel et al., 2020). Raises as `backprop`.
    """
    columns = _columns(network, params, x, y)
    return tuple(_mean(jnp.square(delta), jnp.square(a)) for delta, a in columns)


def variance(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Params:
    """(1/m) Σᵢ (∇Cᵢ − ∇C)² of each parameter, shaped as params; times m / (m − 1) it is unbiased.

    Computed as the second moment less the squared mean: where the variance is far below the square
    of the mean, rounding of the latter is what remains. Raises as `backprop`.
    """
    return tuple(
        jax.tree.map(
            lambda square, mean: jnp.maximum(square - jnp.square(mean), 0),
            _mean(jnp.square(delta), jnp.square(a)),
            _mean(delta, a),
        )
        for delta, a in _columns(network, params, x, y)
    )


class NoiseScale(NamedTuple):
    """`scale` = `noise` / `signal`, in examples: tr Σ and ‖G‖², both without bias.

    Over few examples the signal can come out negative, and the ratio says nothing: average both
    over some batches, then divide.
    """

    scale: Float[Array, ""]
    noise: Float[Array, ""]
    signal: Float[Array, ""]


def gradient_noise_scale(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> NoiseScale:
    """How many examples a batch needs for its gradient to stand out from its noise: tr Σ / ‖G‖².

    G is the true gradient, Σ the covariance of the ∇Cᵢ (McCandlish et al., "An empirical model of
    large-batch training", 2018). Estimated from E‖∇Cᵢ‖² = ‖G‖² + tr Σ, E‖∇C‖² = ‖G‖² + tr Σ / m.

    Raises ValueError for a batch of one example, else as `backprop`.
    """
    columns = _columns(network, params, x, y)
    m = x.shape[1]
    if m < 2:
        raise ValueError(f"x has shape {x.shape}: a noise scale needs at least two examples")
    single = jnp.mean(sum(_squared_norms(*pair) for pair in columns))
    whole = sum(jnp.sum(_square(leaf)) for pair in columns for leaf in _mean(*pair))
    noise, signal = (single - whole) * m / (m - 1), (m * whole - single) / (m - 1)
    return NoiseScale(noise / signal, noise, signal)


def _columns(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> list[Columns]:
    """(δ, the layer's input a) of each entry of params. Under jit no weight gradient is left."""
    trace = forward(network, params, x)
    pairs = []
    for k, delta in enumerate(backward(network, params, trace, y).deltas):
        a = last(trace, k)[1]
        if delta.ndim == 3:
            a = jnp.concatenate([a[None], trace.activations[k + 1][:-1]])
        pairs.append((delta, a))
    return pairs


def _norms(columns: list[Columns]) -> Float[Array, " m"]:
    """‖∇Cᵢ‖, in float32 at least."""
    return jnp.sqrt(sum(_squared_norms(*pair) for pair in columns))


def _squared_norms(
    delta: Float[Array, "*depth n m"], a: Float[Array, "*depth p m"]
) -> Float[Array, " m"]:
    """‖δᵢ‖² (‖aᵢ‖² + 1), summed over the layers of a stack."""
    product = jnp.sum(_square(delta), -2) * (jnp.sum(_square(a), -2) + 1)
    return jnp.sum(product.reshape(-1, product.shape[-1]), 0)


def _square(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """In float32 at least: the square of 256 is no float16."""
    return jnp.square(array.astype(jnp.promote_types(array.dtype, jnp.float32)))


def _mean(delta: Float[Array, "*depth n m"], a: Float[Array, "*depth p m"]) -> Layer:
    """BP3 and BP4, layer by layer in a stack."""
    return jax.vmap(layer_gradient)(delta, a) if delta.ndim == 3 else layer_gradient(delta, a)
