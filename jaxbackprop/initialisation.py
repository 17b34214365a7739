"""The parameters before the first step: random weights, zero biases."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from jaxbackprop.network import Layer, Network, Params, look_up
from jaxbackprop.refusals import check_key, check_network
from jaxbackprop.stacks import LONG_RUN, runs_of

SCHEMES = ("he", "xavier", "normal")


def init(
    network: Network,
    key: PRNGKeyArray,
    dtype: DTypeLike = jnp.float32,
    scheme: str | None = None,
) -> Params:
    """Random weights and zero biases, one key a layer.

    One entry a layer, but for runs of 100 equal layers and more, which are stacked.

    `scheme`: "he", variance 2/fan_in (He et al., 2015); "xavier", 2/(fan_in + fan_out) (Glorot and
    Bengio, 2010); "normal", variance 1, the choice that both papers cure. By default each layer's
    activation chooses: "he" for the relu family, "xavier" for the rest.

    Raises ValueError for an unknown scheme, a dtype that is not floating, or what is no key.
    """
    check_network(network)
    if scheme is not None:
        look_up("scheme", scheme, dict.fromkeys(SCHEMES))
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        name = getattr(dtype, "__name__", dtype)
        hint = f'; a scheme is named, as in scheme="{SCHEMES[0]}"' if type(dtype) is str else ""
        raise ValueError(f"dtype is {name}: parameters are floating point{hint}")
    check_key(key)
    keys = jax.random.split(key, network.depth)

    def layer(l: int, key: PRNGKeyArray) -> Layer:
        p, n = network.sizes[l - 1], network.sizes[l]
        variance = {"he": 2 / p, "xavier": 2 / (p + n), "normal": 1.0}
        scale = math.sqrt(variance[scheme or network.sigma(l).scheme])
        W = jax.random.normal(key, (n, p), dtype) * jnp.asarray(scale, dtype)
        return Layer(W, jnp.zeros((n, 1), dtype))

    shapes = zip(network.sizes[1:-1], network.sizes[:-2], strict=True)
    entries = []
    for first, length in runs_of(list(shapes), LONG_RUN):
        own = keys[first : first + length]
        entries.append(
            jax.vmap(lambda key, l=first + 1: layer(l, key))(own)
            if length > 1
            else layer(first + 1, own[0])
        )
    return (*entries, layer(network.depth, keys[-1]))
