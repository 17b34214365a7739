"""The digits with clipped gradients and noise: what each costs in accuracy.

    python scripts/private_training.py
    python scripts/private_training.py --clips 0.1 1 --noises 0 1 4 --epochs 40

Each step takes the mean of gradients clipped to a norm C, by `per_example.clipped_mean`, adds
normal noise of the standard deviation σ C / m to every number of it, and leaves the rest to optax
(Abadi et al., "Deep learning with differential privacy", 2016).

It takes some fifteen seconds.

This counts no privacy budget, and gives no guarantee: batches are drawn by shuffling, and jax's
random numbers are not made for secrets. With batches drawn by independent coins, the library
dp_accounting says what such a run has spent; with q the chance of an example to be in a batch:

    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise))
    accountant = dp_accounting.rdp.RdpAccountant().compose(event, steps)
    epsilon = accountant.get_epsilon(delta)
"""

import dataclasses
from functools import partial
from pathlib import Path

import command  # noqa: F401
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from parts import figures
from parts.arguments import check
from parts.progress import doing, told
from rich.console import Console

from jaxbackprop import data, per_example


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train."""

    clips: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Bounds C on the norm of one gradient."""
    noises: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """Multipliers σ of the noise."""
    hidden: int = 64
    """Units of the hidden layer."""
    batch: int = 128
    """Examples of a step."""
    epochs: int = 15
    """Passes over the digits."""
    learning_rate: float = 1.0
    """Of plain SGD: where all gradients are clipped, a step is as long as the clip."""
    seed: int = 0
    """Decides weights, order and noise."""
    write: Path = figures.FOLDER
    """The folder for the figure."""

    def __post_init__(self) -> None:
        check(self, clips=0, noises=0, hidden=1, batch=1, epochs=1, learning_rate=0)


def logits(params, x):
    (V, b), (W, c) = params
    return jnp.tanh(x @ V + b) @ W + c


def f(params, example):
    """The cost of one digit: minus the logarithm of its label's probability."""
    x, label = example
    return -jax.nn.log_softmax(logits(params, x))[label]


def begin(options: Options, key: jax.Array):
    first, second = jax.random.split(key)
    V = jax.random.normal(first, (64, options.hidden)) / 8
    W = jax.random.normal(second, (options.hidden, 10)) / options.hidden**0.5
    return (V, jnp.zeros(options.hidden)), (W, jnp.zeros(10))


def noisy(key: jax.Array, mean, deviation):
    """Normal noise on every number of a tree."""
    leaves, tree = jax.tree.flatten(mean)
    keys = jax.random.split(key, len(leaves))
    noise = [deviation * jax.random.normal(k, g.shape) for k, g in zip(keys, leaves, strict=True)]
    return tree.unflatten([g + n for g, n in zip(leaves, noise, strict=True)])


@partial(jax.jit, static_argnames="optimizer")
def step(optimizer, state, batch, clip, noise, key):
    params, moments = state
    mean, clipped, bad = per_example.clipped_mean(f, clip, counts=True)(params, batch)
    m = len(batch[1])
    updates, moments = optimizer.update(noisy(key, mean, noise * clip / m), moments, params)
    return (optax.apply_updates(params, updates), moments), (clipped / m, bad)


def train(options: Options, clip: float, noise: float, split) -> tuple[tuple, float]:
    """(params, the share of gradients that were clipped) after all epochs."""
    optimizer = optax.sgd(options.learning_rate)
    key, start = jax.random.split(jax.random.key(options.seed))
    params = begin(options, start)
    state, shares = (params, optimizer.init(params)), []
    order = np.random.default_rng(options.seed)
    for _ in range(options.epochs):
        rows = order.permutation(len(split.labels))
        for i in range(0, len(rows) - options.batch + 1, options.batch):
            key, own = jax.random.split(key)
            chosen = rows[i : i + options.batch]
            batch = split.inputs[chosen], split.labels[chosen]
            state, (share, bad) = step(optimizer, state, batch, clip, noise, own)
            assert bad == 0
            shares.append(float(share))
    return state[0], float(np.mean(shares))


def draw(options: Options, accuracy: np.ndarray) -> Path:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(options.noises)))
    for j, noise in enumerate(options.noises):
        axes.plot(options.clips, accuracy[:, j], "o-", color=colors[j], label=f"σ = {noise:g}")
    axes.set(xscale="log", xlabel="clip C", ylabel="right of the test digits, %")
    axes.set_xticks(options.clips, [f"{clip:g}" for clip in options.clips])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figures.save(figure, options.write, "private_training")


@told
def main(options: Options) -> None:
    console = Console(highlight=False)
    split, test = data.digits()
    accuracy = np.zeros((len(options.clips), len(options.noises)))
    for i, clip in enumerate(options.clips):
        for j, noise in enumerate(options.noises):
            doing(f"clip {clip:g}, noise {noise:g}")
            params, share = train(options, clip, noise, split)
            right = jnp.argmax(logits(params, test.inputs), 1) == test.labels
            accuracy[i, j] = 100 * float(jnp.mean(right))
            console.print(
                f"clip {clip:g}, noise {noise:g}: {accuracy[i, j]:.1f} % right, "
                f"{100 * share:.0f} % of the gradients clipped"
            )
    console.print(f"see {draw(options, accuracy)}; no privacy budget was counted")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
