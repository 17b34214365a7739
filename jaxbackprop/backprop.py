"""Backpropagation: the four equations, from the output layer to the first.

Nothing here calls autodiff: `forward` leaves a `Trace`, `backward` turns it into the errors δ of
every layer and the gradients, and both are ordinary values.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbackprop.activations import Activation
from jaxbackprop.checkpoint.dense import checkpointed
from jaxbackprop.checkpoint.descriptions import Description
from jaxbackprop.equations import bias_gradient, hidden_error, weight_gradient
from jaxbackprop.forward import cost, forward, last_error
from jaxbackprop.network import Layer, Network, Params, Trace, layers_in
from jaxbackprop.refusals import check_params, check_targets, check_trace

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

Seam = Callable[[int | Int[Array, ""], Float[Array, "n m"]], Float[Array, "n m"]]


class Backward(NamedTuple):
    """The gradients, shaped as the parameters; and δ of each entry, one column an example."""

    gradients: Params
    deltas: tuple[Float[Array, "*depth n m"], ...]


def backward(
    network: Network,
    params: Params,
    trace: Trace,
    y: Float[Array, "n m"],
    *,
    seam: Seam | None = None,
    feedback: tuple[Float[Array, "*_ _ _"], ...] | None = None,
) -> Backward:
    """The backward pass: BP1, then BP3, BP4 and BP2 layer by layer.

    `seam(l, delta)` returns the δ to use for layer l = 1 … L in place of delta, the one that BP1
    or BP2 gave: clip it, add noise, freeze it. In a stack l is a traced integer.
    `feedback` stands in for the weights in BP2, an array for each entry of params: with fixed
    random matrices this is feedback alignment (Lillicrap et al., 2016).

    Raises ValueError where y, params or feedback do not fit.
    """
    check_params(network, params)
    check_trace(params, trace)
    check_targets(trace.activations[-1], y)
    weights = tuple(layer.W for layer in params) if feedback is None else feedback
    if [W.shape for W in weights] != [layer.W.shape for layer in params]:
        raise ValueError("feedback needs one array for each entry of params, shaped as its W")
    use = seam or (lambda l, delta: delta)

    l = network.depth
    delta = use(l, last_error(network, trace, y))
    gradients, deltas = [], []
    for k in reversed(range(len(params))):
        before = last(trace, k)
        sigma = network.sigma(l - layers_in(params[k]))
        if params[k].W.ndim == 3:
            delta, (gradient, used) = _stack_backward(
                sigma, weights[k], trace.zs[k], trace.activations[k + 1], before, delta, use, l
            )
        else:
            gradient, used = layer_gradient(delta, before[1]), delta
            if k > 0:
                sigma_prime = sigma.derivative(*before)
                delta = use(l - 1, hidden_error(weights[k], delta, sigma_prime))
        l -= layers_in(params[k])
        gradients.append(gradient)
        deltas.append(used)
    return Backward(tuple(reversed(gradients)), tuple(reversed(deltas)))


def layer_gradient(delta: Float[Array, "n m"], a_prev: Float[Array, "p m"]) -> Layer:
    """BP3 and BP4 for one layer."""
    return Layer(weight_gradient(delta, a_prev), bias_gradient(delta))


def last(trace: Trace, k: int) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """(z, a) of the layer before `params[k]`: the top one of a stack. The input has no z."""
    a = trace.activations[k]
    z = trace.zs[k - 1] if k > 0 else jnp.zeros_like(a)
    return (z[-1], a[-1]) if a.ndim == 3 else (z, a)


def _stack_backward(
    sigma: Activation,
    weights: Float[Array, "depth n n"],
    zs: Float[Array, "depth n m"],
    activations: Float[Array, "depth n m"],
    before: tuple[Float[Array, "n m"], Float[Array, "n m"]],
    delta: Float[Array, "n m"],
    use: Seam,
    l: int,
) -> tuple[Float[Array, "n m"], tuple[Layer, Float[Array, "depth n m"]]]:
    """Scan BP3, BP4 and BP2 down a stack whose top layer is l and has the error delta.

    Returns the error of the layer before the stack as well. The stored arrays are indexed, not
    passed as the scan's inputs: a shifted copy of the activations would double the memory.
    """
    depth = len(weights)

    def below(i: Int[Array, ""]) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
        z, a = before
        inside = jnp.maximum(i - 1, 0)
        return jnp.where(i > 0, zs[inside], z), jnp.where(i > 0, activations[inside], a)

    def step(delta, i):
        z, a = below(i)
        delta_prev = use(l - depth + i, hidden_error(weights[i], delta, sigma.derivative(z, a)))
        return delta_prev, (layer_gradient(delta, a), delta)

    return jax.lax.scan(step, delta, jnp.arange(depth), reverse=True)


def backprop(
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    *,
    checkpoint: Description | str | None = None,
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients, shaped as params: a forward pass and a backward pass.

    `checkpoint` is one of :mod:`jaxbackprop.checkpoint`'s descriptions, or the command line's
    "every:2" and "64MiB": the same gradients in less memory.

    Raises ValueError where x, y or params do not fit the network, or the checkpoint cannot be had.
    """
    if checkpoint is not None:
        return checkpointed(checkpoint, network, params, x, y)
    trace = forward(network, params, x)
    return cost(network, trace, y), backward(network, params, trace, y).gradients
