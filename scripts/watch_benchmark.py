"""What watching costs: an Adam step watched over the same step unwatched.

    python scripts/watch_benchmark.py                       ten minutes on two quiet cores
    python scripts/watch_benchmark.py --rounds 5 --size 0.25

Time is the median of the rounds' own ratios, with its quartiles; bytes are what the compiled
program sets aside beside arguments and results; tracing and compiling are timed five times in turn,
without jax's caches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from parts.arguments import check
from parts.measure import compiled, interleaved, machine, ratio, temporary_bytes, verdict
from parts.progress import doing, told

import jaxbackprop

OF = ("products", "scopes")
BARS = {"time": 1.05, "bytes": 1.05, "compile": 1.5}
Loss = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass
class Options:
    """What to measure."""

    rounds: int = 21
    """Turns of each step."""
    size: float = 1.0
    """Of the batch, as a share of that in the table."""
    models: tuple[Literal["CNN", "transformer", "scanned transformer"], ...] = (
        *("CNN", "transformer", "scanned transformer"),
    )
    """Which models."""

    def __post_init__(self) -> None:
        check(self, rounds=1, size=0)


def weights(key: jax.Array, *shape: int) -> jax.Array:
    fan_in = jnp.prod(jnp.array(shape[:-1]))
    return jax.random.normal(key, shape) / jnp.sqrt(fan_in)


def cnn(m: int, channels: int = 32, side: int = 32) -> tuple[Any, Loss, jax.Array]:
    """Three convolutions and a dense layer."""
    keys = jax.random.split(jax.random.key(0), 5)
    widths = (3, channels, 2 * channels, 2 * channels)
    params = {
        "conv": [weights(k, 3, 3, i, o) for k, i, o in zip(keys, widths, widths[1:], strict=False)],
        "head": weights(keys[3], widths[-1], 10),
    }

    def loss(params, x):
        for l, kernel in enumerate(params["conv"]):
            with jax.named_scope(f"conv_{l}"):
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1 + l % 2,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.gelu(x)
        with jax.named_scope("head"):
            return jnp.mean(jax.nn.logsumexp(x.mean((1, 2)) @ params["head"], axis=-1))

    return params, loss, jax.random.normal(keys[4], (m, side, side, 3))


def block(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Attention of four heads, then two dense layers, each beside the identity."""
    m, n, d = x.shape
    with jax.named_scope("attention"):
        h = jax.nn.standardize(x)
        q, k, v = ((h @ w[name]).reshape(m, n, 4, d // 4) for name in ("q", "k", "v"))
        scores = jnp.einsum("mihd,mjhd->mhij", q, k) / (d // 4) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        mixed = jnp.einsum("mhij,mjhd->mihd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(m, n, d) @ w["o"]
    with jax.named_scope("dense"):
        return x + jax.nn.gelu(jax.nn.standardize(x) @ w["up"]) @ w["down"]


def transformer(
    m: int, scanned: bool, length: int = 128, d: int = 128, layers: int = 4
) -> tuple[Any, Loss, jax.Array]:
    key, data = jax.random.split(jax.random.key(0))
    shapes = dict.fromkeys(("q", "k", "v", "o"), (d, d)) | {"up": (d, 4 * d), "down": (4 * d, d)}

    def of_layer(key):
        keys = jax.random.split(key, len(shapes))
        return {name: weights(k, *shapes[name]) for name, k in zip(shapes, keys, strict=True)}

    params = jax.vmap(of_layer)(jax.random.split(key, layers))

    def loss(params, x):
        if scanned:
            x, _ = jax.lax.scan(lambda x, w: (block(w, x), None), x, params)
        else:
            for l in range(layers):
                with jax.named_scope(f"block_{l}"):
                    x = block(jax.tree.map(lambda w, l=l: w[l], params), x)
        return jnp.mean(jax.nn.logsumexp(x, axis=-1))

    return params, loss, jax.random.normal(data, (m, length, d))


MODELS = {
    "CNN": (cnn, 32),
    "transformer": (functools.partial(transformer, scanned=False), 8),
    "scanned transformer": (functools.partial(transformer, scanned=True), 8),
}


def steps(loss: Loss) -> dict[str, Callable]:
    """An Adam step unwatched, and watched in each way."""
    optimizer = optax.adam(1e-3)

    def updated(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def plain(params, state, x):
        value, gradients = jaxbackprop.value_and_grad(loss)(params, x)
        return updated(params, state, gradients), value

    def watched(of, params, state, x):
        (value, gradients), seen = jaxbackprop.watch(loss, of)(params, x)
        return updated(params, state, gradients), value, seen

    return {"unwatched": plain} | {of: functools.partial(watched, of) for of in OF}


def programs(loss: Loss, params: Any, x: jax.Array) -> tuple[dict[str, Any], dict]:
    """Each step compiled, and the seconds that it took in each of five rounds, after one that does
    not count."""
    state = optax.adam(1e-3).init(params)
    found, seconds = {}, {name: [] for name in steps(loss)}
    for turn in range(6):
        for name, step in steps(loss).items():
            jax.clear_caches()
            found[name], taken = compiled(step, params, state, x)
            if turn:
                seconds[name].append(taken)
    return found, {name: np.array(taken) for name, taken in seconds.items()}


@told
def main(options: Options) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # what is kept takes no time
    print(machine())
    for name in options.models:
        make, m = MODELS[name]
        params, loss, x = make(max(1, round(m * options.size)))
        doing(f"{name}: compiling")
        found, compiling = programs(loss, params, x)
        state = optax.adam(1e-3).init(params)
        doing(f"{name}: measuring")
        seconds = interleaved(
            {k: functools.partial(program, params, state, x) for k, program in found.items()},
            options.rounds,
        )
        for of in OF:
            time, low, high = ratio(seconds, of, "unwatched")
            size = temporary_bytes(found[of]) / temporary_bytes(found["unwatched"])
            longer, _, _ = ratio(compiling, of, "unwatched")
            print(
                f"{name}, {of}: "
                f"time {time:.3f} [{low:.2f}–{high:.2f}] {verdict(time, BARS['time'])}, "
                f"bytes {size:.3f} {verdict(size, BARS['bytes'])}, "
                f"compile {longer:.2f} {verdict(longer, BARS['compile'])}"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
