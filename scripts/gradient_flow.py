"""How the gradient of each layer changes while deep networks learn the digits.

    python scripts/gradient_flow.py
    python scripts/gradient_flow.py --depth 16 --epochs 40

Trains networks that differ in activation and initialisation alone, draws ‖∂C/∂W‖ of every layer by
epoch, says where the error is lost, and then shows units that die of a large learning rate and
others that do not. The last lines say what the observation cost.
It takes two minutes.
"""

import dataclasses
import functools
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
from parts.measure import interleaved, machine, ratio
from parts.progress import doing, told
from rich.console import Console

from jaxbackprop import Network, data, flow, plots, train


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train."""

    depth: int = 10
    """Layers with weights."""
    shallow: int = 4
    """Layers where units die: a deeper network does not survive the learning rate at all."""
    width: int = 64
    """Units of a hidden layer."""
    epochs: int = 20
    """Passes over the digits."""
    learning_rate: float = 0.1
    """Of plain SGD."""
    large_rate: float = 0.7
    """The one that kills units."""
    batch: int = 32
    """Examples in a step."""
    write: Path = figures.FOLDER
    """The folder for what it makes; "docs" for what the documentation shows."""

    def __post_init__(self) -> None:
        check(self, depth=2, shallow=2, width=1, epochs=1, learning_rate=0, large_rate=0, batch=1)


LOOKING = {"watch": flow.active, "observe": flow.observe}
# Hidden activation, initialisation, which learning rate: the two rows of each column compare.
CASES = (
    ("sigmoid", "xavier", "learning_rate"),
    ("tanh", "xavier", "learning_rate"),
    ("relu", "xavier", "learning_rate"),
    ("relu", "he", "learning_rate"),
    ("relu", "he", "large_rate"),
    ("leaky_relu", "he", "large_rate"),
)


def depth_of(options: Options, case: tuple[str, str, str]) -> int:
    return options.shallow if case[2] == "large_rate" else options.depth


def history(options: Options, case: tuple[str, str, str]) -> tuple[dict, float, str]:
    """Epochs × layers of everything in flow, the test accuracy, and where the error is lost."""
    hidden, scheme, rate = case
    splits = data.digits()
    rows, test_rows = (
        (jnp.asarray(split.inputs), data.one_hot(split.labels, 10)) for split in splits
    )
    sizes = (rows[0].shape[1], *[options.width] * (depth_of(options, case) - 1), 10)
    network = Network(sizes, hidden, "softmax", "cross_entropy")
    optimizer = optax.sgd(getattr(options, rate))
    state = train.start(network, optimizer, jax.random.key(0), scheme=scheme)
    x, y = rows[0][:256].T, rows[1][:256].T
    sentences = flow.explain(network, flow.gains(network, state.params, x, y))
    epochs = []
    for epoch in range(1, options.epochs + 1):
        doing(f"{hidden}, {scheme}: epoch {epoch} of {options.epochs}")
        state, metrics = train.run(network, optimizer, state, *rows, batch=options.batch, **LOOKING)
        epochs.append(jax.tree.map(np.asarray, flow.over_epoch(metrics.seen, metrics.watched)))
    accuracy = float(train.evaluate(network, state.params, *test_rows)[1])
    table = {name: np.stack([epoch[name] for epoch in epochs]) for name in epochs[0]}
    return table, accuracy, sentences


def cost_of_looking(sizes: tuple[int, ...], batch: int) -> float:
    """The time of an observed epoch over that of a plain one."""
    network = Network(sizes, "relu", "softmax", "cross_entropy")
    optimizer, keys = optax.sgd(0.1), jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.uniform(keys[0], (40 * batch, sizes[0]))
    targets = jax.nn.one_hot(jax.random.randint(keys[1], len(inputs), 0, 10), 10)

    def epoch(**looking):
        state = train.start(network, optimizer, jax.random.key(1))
        return train.run(network, optimizer, state, inputs, targets, batch=batch, **looking)

    calls = {"plain": epoch, "seen": functools.partial(epoch, **LOOKING)}
    doing("what looking costs")
    return ratio(interleaved(calls, 21), "seen", "plain")[0]


@told
def main(options: Options) -> None:
    console = Console(highlight=False)
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axes, case in zip(panels.T.ravel(), CASES, strict=True):
        table, accuracy, sentences = history(options, case)
        hidden, scheme, rate = case
        dying = rate == "large_rate"
        shown = 100 * table["dead"] if dying else table["weights"]
        plots.layers(axes, shown, depth_of(options, case) - dying, log=not dying)
        axes.set(
            title=f"{hidden}, {scheme}, rate {getattr(options, rate):g}: {accuracy:.0%} correct",
            xlabel="epoch",
            ylabel="dead units of hidden layers, %" if dying else "‖∂C/∂W‖",
        )
        axes.set_ylim((-2, 102) if dying else (1e-7, 10))
        console.print(f"[bold]{hidden}, {scheme}[/bold], before training: {sentences}")
    plots.depth_scale(figure, panels[:, :2], options.depth)
    plots.depth_scale(figure, panels[:, 2], options.shallow - 1)  # no unit of the output dies
    path = figures.save(figure, options.write, "gradient_flow")
    console.print(f"see {path}; {machine()}")
    for sizes, batch in (((784, 128, 10), 128), ((784, 1024, 1024, 1024, 10), 512)):
        looking = cost_of_looking(sizes, batch)
        console.print(
            f"{sizes}, batch {batch}: an observed epoch takes {looking:.3f} of a plain one"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
