"""The same segments under jax.checkpoint, differentiated by jax.grad: the twin to compare with."""

import functools
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Float

from jaxbackprop.activations import Activation
from jaxbackprop.checkpoint.run import depths_of, pieces
from jaxbackprop.forward import cost
from jaxbackprop.network import Layer, Network, Params, Trace

# Legend: n neurons of a layer, p of the previous one, m examples.

Columns = Float[Array, "_ m"]


def segmented(
    network: Network, k: int, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients by jax.grad, with jax.checkpoint around every k layers."""

    def loss(params: Params) -> Float[Array, ""]:
        a, sigma = x, network.sigma(0)
        for part in _segments(params, k):
            a = part(sigma, a)
        z = params[-1].W @ a + params[-1].b
        return cost(network, Trace((z,), (x, network.sigma(network.depth).value(z))), y)

    return jax.value_and_grad(loss)(params)


def _segments(params: Params, k: int) -> Iterator[Callable[[Activation, Columns], Columns]]:
    """The hidden layers in segments, as functions of σ and a segment's input."""
    hidden = params[:-1]
    for first, end in pieces(depths_of(hidden)):
        if hidden[first].W.ndim == 3:
            stack = hidden[first]
            rest = len(stack.W) % k
            if rest:
                yield functools.partial(_scan, jax.tree.map(lambda v, r=rest: v[:r], stack))
            if len(stack.W) >= k:
                yield functools.partial(_scans, jax.tree.map(lambda v, r=rest: v[r:], stack), k)
        else:
            for start in range(first, end, k):
                yield functools.partial(_row, hidden[start : min(start + k, end)])


def _row(layers: tuple[Layer, ...], sigma: Activation, a: Columns) -> Columns:
    @jax.checkpoint
    def segment(layers: tuple[Layer, ...], a: Columns) -> Columns:
        for layer in layers:
            a = sigma.value(layer.W @ a + layer.b)
        return a

    return segment(layers, a)


def _scan(layers: Layer, sigma: Activation, a: Columns) -> Columns:
    @jax.checkpoint
    def segment(layers: Layer, a: Columns) -> Columns:
        step = lambda a, layer: (sigma.value(layer.W @ a + layer.b), None)  # noqa: E731
        return jax.lax.scan(step, a, layers)[0]

    return segment(layers, a)


def _scans(layers: Layer, k: int, sigma: Activation, a: Columns) -> Columns:
    """The outer of two scans: one segment of k layers a step."""
    folded = jax.tree.map(lambda v: v.reshape(-1, k, *v.shape[1:]), layers)
    return jax.lax.scan(lambda a, segment: (_scan(segment, sigma, a), None), a, folded)[0]
