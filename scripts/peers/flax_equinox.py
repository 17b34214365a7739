"""flax nnx and equinox, with optax: a jitted step in a Python loop, as documented."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peers.work import RATES, Run, Weights, Work, compiled, from_rows, shuffled


def flax_model(work: Work, weights: Weights) -> Any:
    from flax import nnx

    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            pairs = zip(work.sizes[:-1], work.sizes[1:], strict=True)
            self.layers = nnx.List([nnx.Linear(p, n, rngs=rngs) for p, n in pairs])

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = getattr(nnx, work.hidden)(layer(x))
            return self.layers[-1](x)

    model = MLP(nnx.Rngs(0))
    for layer, (W, b) in zip(model.layers, weights, strict=True):
        layer.kernel[...], layer.bias[...] = jnp.asarray(W.T), jnp.asarray(b.ravel())
    return model


def flax_loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy(model(x), y).mean()


def flax_read(tree: Any) -> Weights:
    layers = [tree.layers[k] for k in range(len(tree.layers))]
    return from_rows([(np.asarray(l.kernel[...]).T, l.bias[...]) for l in layers])


def flax_gradient(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
    from flax import nnx

    graph, state = nnx.split(flax_model(work, weights))
    f = lambda state, x, y: nnx.value_and_grad(flax_loss)(nnx.merge(graph, state), x, y)  # noqa: E731
    return compiled(f, (state, jnp.asarray(X), jnp.asarray(Y)), lambda out: flax_read(out[1]))


def flax_epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
    from flax import nnx

    model = flax_model(work, weights)
    optimizer = nnx.Optimizer(model, getattr(optax, rule)(RATES[rule]), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, x, y):
        value, grads = nnx.value_and_grad(flax_loss)(model, x, y)
        optimizer.update(model, grads)
        return value

    def call():
        for rows in shuffled(work, len(X)):
            value = train_step(model, optimizer, X[rows], Y[rows])
        jax.block_until_ready((value, nnx.state(model)))
        return model

    return Run(call, flax_read)


# equinox and optax, as its examples write them.


def equinox_model(work: Work, weights: Weights) -> Any:
    import equinox as eqx

    class MLP(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = getattr(jax.nn, work.hidden)(layer(x))
            return self.layers[-1](x)

    layers = []
    for W, b in weights:
        layer = eqx.nn.Linear(*W.shape[::-1], key=jax.random.key(0))
        new = (jnp.asarray(W), jnp.asarray(b.ravel()))
        layers.append(eqx.tree_at(lambda l: (l.weight, l.bias), layer, new))
    return MLP(layers)


def equinox_loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy(jax.vmap(model)(x), y).mean()


def equinox_read(model: Any) -> Weights:
    return from_rows([(l.weight, l.bias) for l in model.layers])


def equinox_gradient(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
    import equinox as eqx

    args = (equinox_model(work, weights), jnp.asarray(X), jnp.asarray(Y))
    f = lambda *args: eqx.filter_value_and_grad(equinox_loss)(*args)  # noqa: E731
    return compiled(f, args, lambda out: equinox_read(out[1]))


def equinox_epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
    import equinox as eqx

    optimizer = getattr(optax, rule)(RATES[rule])
    model = equinox_model(work, weights)
    held = [model, optimizer.init(eqx.filter(model, eqx.is_array))]

    @eqx.filter_jit
    def make_step(model, opt_state, x, y):
        value, grads = eqx.filter_value_and_grad(equinox_loss)(model, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, value

    def call():
        for rows in shuffled(work, len(X)):
            *held[:], value = make_step(*held, X[rows], Y[rows])
        jax.block_until_ready((held, value))
        return held[0]

    return Run(call, equinox_read)
