"""The library, layers stacked or one by one; jax.grad and the graph wing of the same forward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbackprop import Network, loss, stack, train, unstack, value_and_grad
from jaxbackprop.network import Layer
from jaxbackprop.stacks import LONG_RUN
from peers.work import RATES, Run, Weights, Work, compiled


def as_layers(weights: Weights) -> Any:
    return tuple(Layer(jnp.asarray(W), jnp.asarray(b)) for W, b in weights)


def as_params(weights: Weights) -> Any:
    """In the form that `init` chooses."""
    layers = as_layers(weights)
    return stack(layers) if len(layers) > LONG_RUN else layers


def as_others(weights: Weights) -> Any:
    """In the form that it does not choose, where there are two."""
    layers = as_layers(weights)
    return layers if len(layers) > LONG_RUN else stack(layers)


def from_params(params: Any) -> Weights:
    return [(np.asarray(l.W), np.asarray(l.b)) for l in unstack(params)]


def walked(network: Network, params: Any, x: jax.Array, y: jax.Array) -> Any:
    return value_and_grad(loss, argnums=1)(network, params, x, y)


def ours(gradient: Callable, params_of: Callable = as_params) -> tuple[Callable, Callable]:
    def one(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
        args = (params_of(weights), jnp.asarray(X.T), jnp.asarray(Y.T))
        return compiled(
            lambda *args: gradient(work.network, *args), args, lambda out: from_params(out[1])
        )

    def epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
        optimizer = getattr(optax, rule)(RATES[rule])
        rows = jnp.asarray(X), jnp.asarray(Y)
        params = params_of(weights)
        key = jax.random.key(0)
        held = [train.State(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)]

        def call():
            held[0], metrics = train.run(
                work.network, optimizer, held[0], *rows, batch=work.batch, gradient=gradient
            )
            jax.block_until_ready(metrics)
            return held[0].params

        return Run(call, from_params)

    return one, epoch
