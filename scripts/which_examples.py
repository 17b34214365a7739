"""Which digits are hard, and which have a wrong label: those with the largest gradients.

    python scripts/which_examples.py
    python scripts/which_examples.py --wrong 0.05 --epochs 20

Some of the training labels are replaced by wrong ones, a network is trained for a few epochs, and
the examples are sorted by the norm of their gradient, a score for the selection of data (Paul,
Ganguli and Dziugaite, "Deep learning on a data diet", 2021). What a network does not learn early is
hard, or mislabelled: how many of the wrong labels are among the first, the script says.
It takes some five seconds.
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

from jaxbackprop import Network, data, per_example, train


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train and to show."""

    wrong: float = 0.03
    """The share of training labels that are replaced by wrong ones."""
    hidden: int = 64
    """Units of the hidden layer."""
    epochs: int = 8
    """Passes over the digits before the norms are taken."""
    learning_rate: float = 0.1
    """Of plain SGD."""
    shown: int = 40
    """How many of the examples with the largest gradients are drawn."""
    seed: int = 0
    """Decides weights, order and wrong labels."""
    write: Path = figures.FOLDER
    """The folder for the picture."""

    def __post_init__(self) -> None:
        check(self, wrong=0, hidden=1, epochs=1, learning_rate=0, shown=1)


def spoiled(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels of which a share is wrong, which ones)."""
    random = np.random.default_rng(seed)
    chosen = random.random(len(labels)) < share
    other = (labels + random.integers(1, 10, len(labels))) % 10
    return np.where(chosen, other, labels).astype(labels.dtype), chosen


def draw(options: Options, split, labels: np.ndarray, wrong: np.ndarray, norms: np.ndarray) -> Path:
    """The examples with the largest gradients, wrong labels in red."""
    columns = 10
    rows = -(-options.shown // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * 0.9, rows * 1.15), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, i in zip(axes.flat, np.argsort(-norms)[: options.shown], strict=False):
        ax.imshow(split.inputs[i].reshape(8, 8), cmap="gray_r")
        said = f"{labels[i]}" if not wrong[i] else f"{labels[i]}, is {split.labels[i]}"
        ax.set_title(f"{said}\n{norms[i]:.1f}", fontsize=8, color="red" if wrong[i] else "black")
    figure.suptitle("label and ‖gradient‖, the largest first; wrong labels in red", fontsize=10)
    return figures.save(figure, options.write, "which_examples")


@told
def main(options: Options) -> None:
    split, _ = data.digits()
    labels, wrong = spoiled(split.labels, options.wrong, options.seed)
    rows = jnp.asarray(split.inputs), data.one_hot(labels, 10)
    network = Network((64, options.hidden, 10), "tanh", "softmax", "cross_entropy")
    optimizer = optax.sgd(options.learning_rate)
    state = train.start(network, optimizer, jax.random.key(options.seed))
    for epoch in range(1, options.epochs + 1):
        doing(f"epoch {epoch} of {options.epochs}")
        state, _ = train.run(network, optimizer, state, *rows, batch=32)
    columns = tuple(v.T for v in rows)
    norms = np.asarray(jax.jit(per_example.gradient_norms(network))(state.params, columns))

    count = int(wrong.sum())
    first = np.argsort(-norms)[:count]
    console = Console(highlight=False)
    console.print(
        f"{count} of {len(labels)} labels are wrong; of the {count} examples with the largest "
        f"gradients {int(wrong[first].sum())} are among them"
    )
    console.print(f"see {draw(options, split, labels, wrong, norms)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
