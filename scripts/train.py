"""Train a network on handwritten digits, with gradients by hand.

    python scripts/train.py                                  the digits that ship with scikit-learn
    python scripts/train.py --data-dir ~/mnist               MNIST, Fashion-MNIST: any IDX folder
    python scripts/train.py --hidden tanh --optimizer sgd --learning-rate 0.5
    python scripts/train.py --gradient automatic             jax.grad in place of the four equations

Each run leaves its metrics and learning curve in a folder under `runs/`.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbackprop import Network, data, plots, train
from jaxbackprop.backprop import backprop


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, on what, and how."""

    data_dir: Path | None = None
    """A folder with the four IDX files of MNIST's layout, plain or gzipped. Default: the digits."""
    sizes: tuple[int, ...] | None = None
    """Layer widths, input first. Default: 64 128 10 for the digits, 784 128 10 for IDX files."""
    hidden: str = "relu"
    """The hidden activation: sigmoid, tanh, relu, gelu, …"""
    output: str = "softmax"
    """The output activation."""
    loss: str = "cross_entropy"
    """squared_error, binary_cross_entropy or cross_entropy."""
    optimizer: str = "adam"
    """sgd, momentum, adam, or the name of any optax optimizer."""
    learning_rate: float = 2e-3
    """Passed to the optimizer."""
    batch: int = 32
    """Examples in a step."""
    epochs: int = 40
    """Passes over the training examples."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    gradient: Literal["manual", "automatic"] = "manual"
    """The four equations, or jax.grad."""
    run_dir: Path | None = None
    """Where metrics and figure go. Default: a new folder under runs/."""

    def __post_init__(self) -> None:
        for name in ("batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")


def make_optimizer(name: str, learning_rate: float) -> optax.GradientTransformation:
    """optax's optimizer of that name; "momentum" is SGD with momentum 0.9."""
    if name == "momentum":
        return optax.sgd(learning_rate, momentum=0.9)
    make = getattr(optax, name, None)
    try:
        optimizer = make(learning_rate)
        optimizer.init(jnp.zeros(1))
    except (TypeError, AttributeError):
        raise ValueError(f"--optimizer {name}: optax has no optimizer of that name") from None
    return optimizer


def load(options: Options) -> tuple[Network, tuple[data.Split, data.Split]]:
    """The data, and the network that fits them."""
    splits = data.idx_folder(options.data_dir) if options.data_dir else data.digits()
    examples = splits[0]
    classes = int(examples.labels.max()) + 1
    sizes = options.sizes or (examples.inputs.shape[1], 128, classes)
    network = Network(sizes, options.hidden, options.output, options.loss)
    if sizes[0] != examples.inputs.shape[1]:
        raise ValueError(
            f"--sizes begins with {sizes[0]}, an example has {examples.inputs.shape[1]}"
        )
    for split in splits:
        data.check_labels(split.labels, sizes[-1])
    return network, splits


def to_device(split: data.Split, classes: int) -> tuple[jax.Array, jax.Array]:
    """Inputs and one-hot targets in rows, on the device."""
    return jnp.asarray(split.inputs), data.one_hot(split.labels, classes).T


def main(options: Options) -> None:
    console = Console()
    network, splits = load(options)
    optimizer = make_optimizer(options.optimizer, options.learning_rate)
    (inputs, targets), (test_inputs, test_targets) = (
        to_device(split, network.sizes[-1]) for split in splits
    )
    gradient = {"manual": backprop, "automatic": train.automatic}[options.gradient]
    state = train.start(network, optimizer, jax.random.key(options.seed))
    console.print(
        f"{network.sizes}, {options.hidden}, {options.output}, {options.loss}; {options.optimizer}"
        f" {options.learning_rate:g}; {len(inputs)} examples, {len(test_inputs)} for testing",
        highlight=False,
    )

    history = {"epoch": [], "loss": [], "train_accuracy": [], "test_accuracy": [], "seconds": []}
    columns = (
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}"),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.epochs)
        for epoch in range(options.epochs):
            begin = time.perf_counter()
            state, metrics = train.run(
                network, optimizer, state, inputs, targets, batch=options.batch, gradient=gradient
            )
            losses = jax.block_until_ready(metrics.loss)
            history["seconds"].append(time.perf_counter() - begin)
            stop_if_not_finite(network, metrics, int(state.step))
            history["epoch"].append(epoch + 1)
            history["loss"].append(float(losses.mean()))
            for name, rows in (
                ("train_accuracy", (inputs, targets)),
                ("test_accuracy", (test_inputs, test_targets)),
            ):
                history[name].append(float(train.evaluate(network, state.params, *rows)[1]))
            text = (
                f"loss {history['loss'][-1]:.4f}  test accuracy {history['test_accuracy'][-1]:.2%}"
            )
            progress.update(task, advance=1, description=text)

    folder = options.run_dir or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in dataclasses.asdict(options).items()}
    record = {"options": settings, "sizes": network.sizes, "history": history}
    (folder / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    plots.learning_curve(history, folder / "learning_curve.png")
    console.print(
        f"test accuracy {history['test_accuracy'][-1]:.2%}, "
        f"{sorted(history['seconds'])[options.epochs // 2] * 1e3:.0f} ms an epoch; see {folder}/",
        highlight=False,
    )


def stop_if_not_finite(network: Network, metrics: train.Metrics, step: int) -> None:
    """Exit with status 1, saying at which step and in which layer, where a number went bad."""
    bad = jnp.flatnonzero(metrics.bad_layer)
    if bad.size:
        l = int(metrics.bad_layer[bad[0]])
        where = f"the gradient of layer {l}" if l <= network.depth else "the loss"
        sys.exit(
            f"step {step - len(metrics.loss) + int(bad[0]) + 1}: {where} is not finite. "
            "Try a smaller --learning-rate; jaxbackprop.inspect shows which operation did it."
        )


if __name__ == "__main__":
    options = tyro.cli(Options)
    try:
        main(options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
