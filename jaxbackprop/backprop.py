"""Backpropagation: the four equations, from the output layer to the first.

Nothing here calls autodiff: `forward` leaves a `Trace`, `backward` turns it into the errors δ of
every layer and the gradients, and both are ordinary values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbackprop.checkpoint.dense import checkpointed
from jaxbackprop.checkpoint.descriptions import Description
from jaxbackprop.equations import bias_gradient, hidden_error, weight_gradient
from jaxbackprop.forward import cost, forward, last_error
from jaxbackprop.network import Layer, Network, Params, Trace, layers_in
from jaxbackprop.refusals import (
    check_error,
    check_feedback,
    check_params,
    check_seam,
    check_targets,
    check_trace,
)

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

Number = int | Int[Array, ""]  # of a layer; traced where a stack is scanned
Seam = Callable[[Any, Float[Array, "n m"]], Float[Array, "n m"]]
Below = tuple[Float[Array, "p m"], Float[Array, "p m"]]  # z and a of the layer before
Step = tuple[Float[Array, "_ m"], tuple[Layer, Float[Array, "*depth n m"]]]


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

    Raises ValueError where y, params or feedback do not fit, or seam returns no such δ.
    """
    check_params(network, params)
    check_trace(params, trace)
    check_targets(trace.activations[-1], y)
    weights = tuple(layer.W for layer in params) if feedback is None else feedback
    check_seam(seam)
    check_feedback(weights, params)
    sigma, l = network.sigma(0), network.depth

    def use(l: Number, delta: Float[Array, "n m"]) -> Float[Array, "n m"]:
        return delta if seam is None else check_error(delta, l, seam(l, delta))

    def step(l: Number, W: Float[Array, "n p"], below: Below, delta: Float[Array, "n m"]) -> Step:
        """Of layer l, whose error is delta: its gradient, and the error of the one below."""
        z, a = below
        gradient = layer_gradient(delta, a)
        if isinstance(l, int) and l == 1:
            return delta, (gradient, delta)
        return use(l - 1, hidden_error(W, delta, sigma.derivative(z, a))), (gradient, delta)

    delta, gradients, deltas = use(l, last_error(network, trace, y)), [], []
    for k in reversed(range(len(params))):
        if params[k].W.ndim == 3:
            delta, (gradient, used) = _down_stack(step, l, weights[k], trace, k, delta)
        else:
            delta, (gradient, used) = step(l, weights[k], last(trace, k), delta)
        l -= layers_in(params[k])
        gradients.append(gradient)
        deltas.append(used)
    return Backward(tuple(reversed(gradients)), tuple(reversed(deltas)))


def layer_gradient(delta: Float[Array, "n m"], a_prev: Float[Array, "p m"]) -> Layer:
    """BP3 and BP4 for one layer."""
    return Layer(weight_gradient(delta, a_prev), bias_gradient(delta))


def last(trace: Trace, k: int) -> Below:
    """(z, a) of the layer before `params[k]`: the top one of a stack. The input has no z."""
    a = trace.activations[k]
    z = trace.zs[k - 1] if k > 0 else jnp.zeros_like(a)
    return (z[-1], a[-1]) if a.ndim == 3 else (z, a)


def _down_stack(
    step: Callable,
    l: int,
    weights: Float[Array, "depth n n"],
    trace: Trace,
    k: int,
    delta: Float[Array, "n m"],
) -> Step:
    """The same steps, scanned down a stack whose top layer is l.

    The stored arrays are indexed, not passed as the scan's inputs: a shifted copy of the
    activations would double the memory.
    """
    depth, before = len(weights), last(trace, k)
    stored = trace.zs[k], trace.activations[k + 1]

    def below(i: Int[Array, ""]) -> Below:
        inside = jnp.maximum(i - 1, 0)
        z, a = (jnp.where(i > 0, own[inside], b) for own, b in zip(stored, before, strict=True))
        return z, a

    def turn(delta, i):
        return step(l - depth + 1 + i, weights[i], below(i), delta)

    return jax.lax.scan(turn, delta, jnp.arange(depth), reverse=True)


def backprop(
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    *,
    checkpoint: Description | str | None = None,
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients, shaped as params: a forward pass and a backward pass.

    `checkpoint` is one of `jaxbackprop.checkpoint`'s descriptions, or the command line's
    "every:2" and "64MiB": the same gradients in less memory.

    Raises ValueError where x, y or params do not fit the network, or the checkpoint cannot be had.
    """
    if checkpoint is not None:
        return checkpointed(checkpoint, network, params, x, y)
    trace = forward(network, params, x)
    return cost(network, trace, y), backward(network, params, trace, y).gradients
