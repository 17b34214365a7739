"""What people would use instead: each peer computes the same gradient and trains the same epoch.

    python scripts/peers.py jaxbackprop 784,128,10       the peak memory of a process of its own

A peer gets weights (W, b) of the text's shapes, inputs X and one-hot targets Y in rows, keeps them
as its own documentation would, and returns runs whose results `read` turns back into (W, b). A
package that is not installed leaves its peers out.
"""

import importlib.util
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbackprop
from jaxbackprop import Network, backprop, loss, stack, train, unstack
from jaxbackprop.network import Layer

Weights = Sequence[tuple[np.ndarray, np.ndarray]]
RATES = {"sgd": 0.1, "adam": 1e-3}


class Work(NamedTuple):
    """A network with softmax and cross-entropy, a batch, and the batches of an epoch."""

    name: str
    sizes: tuple[int, ...]
    hidden: str
    batch: int
    steps: int

    @property
    def flops(self) -> int:
        """Of the products of one gradient: three a layer, two for the first."""
        pairs = zip(self.sizes[1:], self.sizes[:-1], strict=True)
        products = [2 * self.batch * n * p for n, p in pairs]
        return 3 * sum(products) - products[0]

    @property
    def network(self) -> Network:
        return Network(self.sizes, self.hidden, "softmax", "cross_entropy")


class Run(NamedTuple):
    """`call()` returns when the work is done; `read(result)` is the result as (W, b) a layer."""

    call: Callable[[], Any]
    read: Callable[[Any], Weights]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def material(work: Work, examples: int, seed: int = 0) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Random weights, inputs and one-hot targets in float32."""
    params = jaxbackprop.init(work.network, jax.random.key(seed))
    random = np.random.default_rng(seed)
    X = random.standard_normal((examples, work.sizes[0]), np.float32)
    Y = np.eye(work.sizes[-1], dtype=np.float32)[random.integers(work.sizes[-1], size=examples)]
    return [(np.array(l.W), np.array(l.b)) for l in unstack(params)], X, Y


def compiled(f: Callable, args: tuple, read: Callable) -> Run:
    """A jitted function with its compile time (tracing included) and temporary memory."""
    begin = time.perf_counter()
    program = jax.jit(f).lower(*args).compile()
    seconds = time.perf_counter() - begin
    temporary = program.memory_analysis().temp_size_in_bytes
    return Run(lambda: jax.block_until_ready(program(*args)), read, seconds, temporary)


def as_params(weights: Weights) -> Any:
    return stack(tuple(Layer(jnp.asarray(W), jnp.asarray(b)) for W, b in weights))


def from_params(params: Any) -> Weights:
    return [(np.asarray(l.W), np.asarray(l.b)) for l in unstack(params)]


def from_rows(layers: Sequence[tuple[Any, Any]]) -> Weights:
    """From libraries that keep b as a vector."""
    return [(np.asarray(W), np.asarray(b)[:, None]) for W, b in layers]


# The library, and its two twins: jax.grad and the graph wing behind the same forward pass.


def walked(network: Network, params: Any, x: jax.Array, y: jax.Array) -> Any:
    return jaxbackprop.value_and_grad(loss, argnums=1)(network, params, x, y)


def ours(gradient: Callable) -> tuple[Callable, Callable]:
    def one(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
        args = (as_params(weights), jnp.asarray(X.T), jnp.asarray(Y.T))
        return compiled(
            lambda *args: gradient(work.network, *args), args, lambda out: from_params(out[1])
        )

    def epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
        optimizer = getattr(optax, rule)(RATES[rule])
        rows = jnp.asarray(X), jnp.asarray(Y)
        params = as_params(weights)
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


def shuffled(work: Work, examples: int) -> np.ndarray:
    """The rows of each batch of an epoch, in a new order."""
    order = np.random.default_rng().permutation(examples)
    return order[: work.steps * work.batch].reshape(work.steps, work.batch)


# flax nnx and optax, as the tutorial writes them: a jitted step in a Python loop.


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


# PyTorch, eager and compiled.


def torch_model(work: Work, weights: Weights) -> Any:
    import torch
    from torch import nn

    sigma = {"relu": nn.ReLU, "tanh": nn.Tanh}[work.hidden]
    parts = []
    for W, b in weights:
        linear = nn.Linear(*W.shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(W))
            linear.bias.copy_(torch.tensor(b.ravel()))
        parts += [linear, sigma()]
    return nn.Sequential(*parts[:-1])


def torch_read(pairs: Sequence[tuple[Any, Any]]) -> Weights:
    return from_rows([(W.detach().numpy(), b.detach().numpy()) for W, b in pairs])


def linears(model: Any) -> list:
    return [part for part in model if hasattr(part, "weight")]


def torch_peer(compile: bool) -> tuple[Callable, Callable]:
    def prepare(work, weights):
        import torch

        model = torch_model(work, weights)
        return model, torch.compile(model) if compile else model, torch.nn.CrossEntropyLoss()

    def one(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
        import torch

        model, apply, criterion = prepare(work, weights)
        x, y = torch.tensor(X), torch.tensor(Y.argmax(1))

        def call():
            model.zero_grad()
            criterion(apply(x), y).backward()
            return [(l.weight.grad, l.bias.grad) for l in linears(model)]

        begin = time.perf_counter()
        call()
        return Run(call, torch_read, time.perf_counter() - begin if compile else None)

    def epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
        import torch

        model, apply, criterion = prepare(work, weights)
        rules = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
        optimizer = rules[rule](model.parameters(), lr=RATES[rule])
        x, y = torch.tensor(X), torch.tensor(Y.argmax(1))

        def call():
            for rows in torch.tensor(shuffled(work, len(X))):
                optimizer.zero_grad()
                criterion(apply(x[rows]), y[rows]).backward()
                optimizer.step()
            return [(l.weight, l.bias) for l in linears(model)]

        return Run(call, torch_read)

    return one, epoch


# The class of the text in NumPy, with a batch as the columns of a matrix.


class TextNetwork:
    """Lists of weights and biases, changed in place by mini-batches."""

    def __init__(self, weights: Weights, hidden: str):
        self.weights, self.biases = ([np.array(part[k]) for part in weights] for k in (0, 1))
        self.hidden = hidden

    def sigma(self, z):
        return np.maximum(z, 0) if self.hidden == "relu" else np.tanh(z)

    def sigma_prime(self, z):
        return (z > 0).astype(z.dtype) if self.hidden == "relu" else 1 - np.tanh(z) ** 2

    def backprop(self, x, y):
        activations, zs = [x], []
        for W, b in zip(self.weights, self.biases, strict=True):
            zs.append(W @ activations[-1] + b)
            activations.append(self.sigma(zs[-1]))
        e = np.exp(zs[-1] - zs[-1].max(axis=0))
        delta = e / e.sum(axis=0) - y
        gradients = []
        for l in range(len(zs) - 1, -1, -1):
            m = delta.shape[1]
            b = delta.sum(axis=1, keepdims=True) / m
            gradients.append((delta @ activations[l].T / m, b))
            if l > 0:
                delta = (self.weights[l].T @ delta) * self.sigma_prime(zs[l - 1])
        return gradients[::-1]

    def update_mini_batch(self, x, y, eta):
        for l, (dW, db) in enumerate(self.backprop(x, y)):
            self.weights[l] = self.weights[l] - eta * dW
            self.biases[l] = self.biases[l] - eta * db


def text_gradient(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
    network, x, y = TextNetwork(weights, work.hidden), np.ascontiguousarray(X.T), Y.T.copy()
    return Run(lambda: network.backprop(x, y), list)


def text_epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run | None:
    if rule != "sgd":
        return None  # the text's class has no other
    network = TextNetwork(weights, work.hidden)

    def call():
        for rows in shuffled(work, len(X)):
            network.update_mini_batch(X[rows].T, Y[rows].T, RATES[rule])
        return list(zip(network.weights, network.biases, strict=True))

    return Run(call, list)


# name: (package it needs, one gradient, one epoch)
PEERS: dict[str, tuple[str, Callable, Callable]] = {
    "jaxbackprop": ("jax", *ours(backprop)),
    "jax.grad": ("jax", *ours(train.automatic)),
    "graph wing": ("jax", *ours(walked)),
    "flax nnx": ("flax", flax_gradient, flax_epoch),
    "equinox": ("equinox", equinox_gradient, equinox_epoch),
    "torch eager": ("torch", *torch_peer(compile=False)),
    "torch.compile": ("torch", *torch_peer(compile=True)),
    "NumPy class": ("numpy", text_gradient, text_epoch),
}


def installed(names: Sequence[str] = tuple(PEERS)) -> list[str]:
    return [name for name in names if importlib.util.find_spec(PEERS[name][0])]


WORKS = {
    work.name: work
    for work in (
        Work("784,128,10", (784, 128, 10), "relu", 128, 468),
        Work("784,1024x3,10", (784, 1024, 1024, 1024, 10), "relu", 512, 8),
        Work("2048x5", (2048,) * 5, "relu", 1024, 2),
        Work("64 layers", (256,) * 65, "tanh", 256, 8),
        Work("256 layers", (256,) * 257, "tanh", 256, 3),
    )
}


def main(peer: str, work: Work) -> None:
    """Print the peak resident MiB of a process that computes the gradient three times."""
    run = PEERS[peer][1](work, *material(work, work.batch))
    for _ in range(3):
        run.call()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(sys.argv[1], WORKS[sys.argv[2]])
