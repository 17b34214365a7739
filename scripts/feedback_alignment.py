"""Learning with random weights on the way back: feedback alignment, by one argument of `backward`.

    python scripts/feedback_alignment.py

In BP2 fixed random matrices stand in for Wᵀ (Lillicrap et al., "Random synaptic feedback weights
support error backpropagation for deep learning", 2016). The network learns all the same, because
its weights turn towards the random ones: the angle between the error that it passes down and the
true δ falls below a right angle. It takes about ten seconds.
"""

import dataclasses
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

from jaxbackprop import Network, backprop, backward, data, forward, init, train
from jaxbackprop.forward import cost


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train."""

    hidden: int = 128
    """Units of each of the two hidden layers."""
    epochs: int = 30
    """Passes over the digits."""
    learning_rate: float = 0.1
    """Of plain SGD."""
    seed: int = 0
    """Decides weights and order; the feedback is drawn with another key."""
    write: Path = figures.FOLDER
    """The folder for what it makes; "docs" for what the documentation shows."""

    def __post_init__(self) -> None:
        check(self, hidden=1, epochs=1, learning_rate=0)


def angles(network, params, feedback, x, y):
    """Degrees between δˡ with random and with true weights, for each hidden layer."""
    trace = forward(network, params, x)
    random = backward(network, params, trace, y, feedback=feedback).deltas[:-1]
    true = backward(network, params, trace, y).deltas[:-1]
    cosines = [
        jnp.vdot(r, t) / jnp.sqrt(jnp.vdot(r, r) * jnp.vdot(t, t))
        for r, t in zip(random, true, strict=True)
    ]
    return jnp.degrees(jnp.arccos(jnp.clip(jnp.array(cosines), -1, 1)))


def learned(options: Options) -> tuple[dict[str, list[float]], np.ndarray]:
    """By epoch: test errors in % of both ways to learn, and the angles (epochs × layers)."""
    rows, test_rows = (
        (jnp.asarray(split.inputs), data.one_hot(split.labels, 10)) for split in data.digits()
    )
    network = Network((64, options.hidden, options.hidden, 10), "tanh", "softmax", "cross_entropy")
    feedback = tuple(layer.W for layer in init(network, jax.random.key(options.seed + 1)))

    def by_feedback(network, params, x, y):
        trace = forward(network, params, x)
        found = backward(network, params, trace, y, feedback=feedback)
        return cost(network, trace, y), found.gradients

    optimizer = optax.sgd(options.learning_rate)
    ways = {"feedback alignment": by_feedback, "backpropagation": backprop}
    states = {n: train.start(network, optimizer, jax.random.key(options.seed)) for n in ways}
    errors, turned = {name: [] for name in ways}, []
    for epoch in range(1, options.epochs + 1):
        doing(f"epoch {epoch} of {options.epochs}")
        for name, way in ways.items():
            states[name], _ = train.run(
                network, optimizer, states[name], *rows, batch=32, gradient=way
            )
            accuracy = train.evaluate(network, states[name].params, *test_rows)[1]
            errors[name].append(100 * (1 - float(accuracy)))
        params = states["feedback alignment"].params
        turned.append(angles(network, params, feedback, rows[0].T, rows[1].T))
    return errors, np.array(turned)


def draw(options: Options, errors: dict[str, list[float]], turned: np.ndarray) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    epochs = range(1, options.epochs + 1)
    for (name, error), color in zip(errors.items(), ("tab:orange", "tab:blue"), strict=True):
        left.semilogy(epochs, error, label=name, color=color)
    left.set(xlabel="epoch", ylabel="test error, %", yticks=(1, 2, 5, 10, 20))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    for l, color in enumerate(("#414487", "#7ad151")):
        right.plot(epochs, turned[:, l], color=color, label=f"layer {l + 1}")
    right.axhline(90, color="gray", linestyle=":", label="no relation")
    right.set(xlabel="epoch", ylabel="angle to the true δ, degrees", ylim=(0, 100))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figures.save(figure, options.write, "feedback_alignment")


@told
def main(options: Options) -> None:
    errors, turned = learned(options)
    console = Console(highlight=False)
    for name, error in errors.items():
        console.print(f"{name}: {100 - error[-1]:.2f} % right")
    for l, angle in enumerate(turned.T, 1):
        console.print(f"layer {l}: {angle[0]:.0f}° after one epoch, {angle[-1]:.0f}° at the end")
    console.print(f"see {draw(options, errors, turned)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
