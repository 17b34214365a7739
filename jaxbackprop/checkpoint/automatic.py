"""The same segments under jax.checkpoint, differentiated by jax.grad: the twin to compare with."""

import functools
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Float

from jaxbackprop.activations import Activation
from jaxbackprop.backprop import Strategy
from jaxbackprop.checkpoint.exchange import ALONE, Exchange
from jaxbackprop.checkpoint.run import depths_of, pieces
from jaxbackprop.forward import cost
from jaxbackprop.network import Layer, Network, Params, Trace
from jaxbackprop.refusals import check_params

# Legend: n neurons of a layer, p of the previous one, m examples.

Columns = Float[Array, "_ m"]


@functools.cache
def jax_segments(k: int) -> Strategy:
    """What `backprop(checkpoint=…)` takes: jax.grad, with jax.checkpoint around every k layers.

    Of a stack, the layers that do not fill a segment come first. In a scan this stores what it
    says. Unrolled it may not: on a CPU, XLA under jax 0.10 finds that a recomputed plain layer
    equals the first computation, and keeps that one (0.12 does not); look at temp_size_in_bytes.

    Raises ValueError for k below 1, and where a device is to exchange something with others.
    """
    check_segment(k)

    def strategy(
        network: Network,
        params: Params,
        x: Float[Array, "p m"],
        y: Float[Array, "n m"],
        exchange: Exchange = ALONE,
    ) -> tuple[Float[Array, ""], Params]:
        if exchange is not ALONE:
            raise ValueError("jax_segments exchanges nothing: take checkpoint.every or within")
        check_params(network, params)

        def loss(params: Params) -> Float[Array, ""]:
            a, sigma = x, network.sigma(0)
            for part in _segments(params, k):
                a = part(sigma, a)
            z = params[-1].W @ a + params[-1].b
            return cost(network, Trace((z,), (x, network.sigma(network.depth).value(z))), y)

        return jax.value_and_grad(loss)(params)

    return strategy


def check_segment(k: int) -> None:
    """Raise ValueError unless k is a whole number ≥ 1."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}, expected a whole number ≥ 1: every k-th activation is kept")


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
