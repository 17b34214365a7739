"""Figures of training runs. Needs matplotlib: `pip install "jaxbackprop[plot]"`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def learning_curve(history: Mapping[str, Sequence[float]], path: str | Path) -> Figure:
    """Loss (log scale) and accuracies by epoch, saved to path.

    `history` has the keys epoch, loss, train_accuracy and test_accuracy.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.semilogy(history["epoch"], history["loss"], color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss")
    for name, color in (("train_accuracy", "tab:blue"), ("test_accuracy", "tab:orange")):
        right.plot(
            history["epoch"],
            [100 * accuracy for accuracy in history[name]],
            color=color,
            label=name.split("_")[0],
        )
    right.set(xlabel="epoch", ylabel="accuracy, %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return figure
