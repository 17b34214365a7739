"""The models that per-example gradients are measured on: f(params, example), params, batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Model(NamedTuple):
    f: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def keys(count: int) -> list[jax.Array]:
    return list(jax.random.split(jax.random.key(0), count))


def dense(key: jax.Array, *shape: int) -> jax.Array:
    """Normal numbers with the variance of one over the first axes' size."""
    fan_in = jnp.prod(jnp.array(shape[:-1]))
    return jax.random.normal(key, shape) / jnp.sqrt(fan_in)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], -1))


def mlp(batch: int, sizes: tuple[int, ...] = (784, 512, 512, 10)) -> Model:
    ks = keys(len(sizes) + 1)
    pairs = zip(ks, sizes[:-1], sizes[1:], strict=False)
    params = [(dense(k, p, n), jnp.zeros(n)) for k, p, n in pairs]

    def f(params, example):
        x, label = example
        for W, b in params[:-1]:
            x = jax.nn.relu(x @ W + b)
        W, b = params[-1]
        return cross_entropy(x @ W + b, label)

    x = jax.random.normal(ks[-2], (batch, sizes[0]))
    return Model(f, params, (x, jax.random.randint(ks[-1], (batch,), 0, sizes[-1])))


def cnn(batch: int, side: int = 32, channels: tuple[int, ...] = (3, 32, 64, 64)) -> Model:
    ks = keys(len(channels) + 3)
    pairs = zip(ks, channels[:-1], channels[1:], strict=False)
    kernels = [(dense(k, 3, 3, p, n), jnp.zeros(n)) for k, p, n in pairs]
    places = (side // 2 ** (len(channels) - 1)) ** 2
    params = kernels, dense(ks[-3], places * channels[-1], 10)

    def f(params, example):
        x, label = example
        kernels, W = params
        for K, b in kernels:
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x[None], K, (1, 1), "SAME", dimension_numbers=layout)[
                0
            ]
            x = jax.nn.relu(x + b)
            h, w, c = x.shape
            x = x.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))
        return cross_entropy(x.reshape(-1) @ W, label)

    x = jax.random.normal(ks[-2], (batch, side, side, channels[0]))
    return Model(f, params, (x, jax.random.randint(ks[-1], (batch,), 0, 10)))


def lstm(batch: int, steps: int = 64, inputs: int = 32, width: int = 128) -> Model:
    ks = keys(5)
    params = {
        "W": dense(ks[0], inputs, 4 * width),
        "U": dense(ks[1], width, 4 * width),
        "b": jnp.zeros(4 * width),
        "out": dense(ks[2], width, 10),
    }

    def f(params, example):
        xs, label = example

        def step(state, x):
            h, c = state
            i, f, g, o = jnp.split(x @ params["W"] + h @ params["U"] + params["b"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros(width)
        (h, _), _ = jax.lax.scan(step, (zero, zero), xs)
        return cross_entropy(h @ params["out"], label)

    xs = jax.random.normal(ks[3], (batch, steps, inputs))
    return Model(f, params, (xs, jax.random.randint(ks[4], (batch,), 0, 10)))


def transformer(
    batch: int, seq: int = 128, width: int = 256, heads: int = 4, depth: int = 2, words: int = 1000
) -> Model:
    """Blocks before normalisation; the embedding is also the last matrix."""
    ks = iter(keys(2 + 4 * depth))
    blocks = [
        {
            "qkv": dense(next(ks), width, 3 * width),
            "out": dense(next(ks), width, width),
            "up": dense(next(ks), width, 4 * width),
            "down": dense(next(ks), 4 * width, width),
            "scales": jnp.ones((2, width)),
        }
        for _ in range(depth)
    ]
    params = {"E": dense(next(ks), width, words).T, "blocks": blocks}

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return scale * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)

    def attend(x, p):
        q, k, v = (y.reshape(seq, heads, -1).swapaxes(0, 1) for y in jnp.split(x @ p["qkv"], 3, -1))
        scores = q @ k.swapaxes(1, 2) / jnp.sqrt(width / heads)
        mixed = jax.nn.softmax(jnp.where(jnp.tri(seq, dtype=bool), scores, -1e9)) @ v
        return mixed.swapaxes(0, 1).reshape(seq, width) @ p["out"]

    def f(params, tokens):
        x = params["E"][tokens[:-1]]
        for p in params["blocks"]:
            x = x + attend(norm(x, p["scales"][0]), p)
            x = x + jax.nn.gelu(norm(x, p["scales"][1]) @ p["up"]) @ p["down"]
        return cross_entropy(x @ params["E"].T, tokens[1:])

    return Model(f, params, jax.random.randint(next(ks), (batch, seq + 1), 0, words))


MODELS = {
    "mlp": lambda batch: mlp(batch or 128),
    "cnn": lambda batch: cnn(batch or 128),
    "short": lambda batch: transformer(batch or 32, seq=32, width=512),
    "lstm": lambda batch: lstm(batch or 128),
    "transformer": lambda batch: transformer(batch or 32),
}
