"""Figures of training runs. Needs matplotlib: `pip install "jaxbackprop[plot]"`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxbackprop.refusals import what


def _check_columns(name: str, columns: object, *wanted: str) -> None:
    """Raise ValueError unless it is a mapping with all that is drawn."""
    missing = [key for key in wanted if not isinstance(columns, Mapping) or key not in columns]
    if missing:
        raise ValueError(f"{name} is without {', '.join(missing)}")


def learning_curve(history: Mapping[str, Sequence[Any]], path: str | Path) -> Figure:
    """Loss (log scale) and accuracies by epoch, saved to path.

    `history` has the keys epoch, loss, train_accuracy and test_accuracy.
    """
    _check_columns("history", history, "epoch", "loss", "train_accuracy", "test_accuracy")
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
    return _saved(figure, path)


# (name in flow.over_epoch, what it is, whether its axis is logarithmic)
FLOW = (
    ("weights", "‖∂C/∂W‖", True),
    ("errors", "‖δ‖ of an example", True),
    ("updates", "‖ΔW‖ / ‖W‖", True),
    ("dead", "dead units of hidden layers, %", False),
)


def gradient_flow(flow: Mapping[str, ArrayLike], path: str | Path) -> Figure:
    """A run layer by layer: gradients, errors, steps and dead units by epoch, saved to path.

    `flow` has an array of epochs × layers for each name of `flow.over_epoch`.
    """
    _check_columns("flow", flow, *(name for name, *_ in FLOW))
    figure, panels = plt.subplots(1, len(FLOW), figsize=(14, 3.6), layout="constrained")
    depth = np.shape(flow["weights"])[1]
    for axes, (name, label, log) in zip(panels, FLOW, strict=True):
        layers(axes, np.asarray(flow[name]) * (1 if log else 100), depth, log)
        axes.set(xlabel="epoch", title=label)
    panels[-1].set_ylim(-2, 102)  # where none dies, a line at 0
    depth_scale(figure, panels, depth)
    return _saved(figure, path)


def watched(history: Sequence[Mapping[str, float]], path: str | Path) -> Figure:
    """What `watch.scalars` told of each training step, of any model, saved to path.

    A panel for each norm and for the updates, in it a line for each watched value from the first
    that was computed (dark) to the last; what was not computed in a step leaves a gap.
    """
    if not isinstance(history, Sequence) or not history:
        raise ValueError(f"history is {what(history)}, expected watch.scalars of each step, a list")
    kinds = [
        kind
        for kind in ("value norm", "gradient norm", "update")
        if any(name.startswith(f"{kind}/") for name in history[0])
    ]
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.7 * len(kinds), 3.6), layout="constrained", squeeze=False
    )
    for axes, kind in zip(panels[0], kinds, strict=True):
        names = dict.fromkeys(n for step in history for n in step if n.startswith(f"{kind}/"))
        lines = [[step.get(name, np.nan) for name in names] for step in history]
        layers(axes, lines, len(names))
        axes.set(xlabel="step", title=kind)
    return _saved(figure, path)


def layers(axes: Axes, values: ArrayLike, depth: int, log: bool = True) -> None:
    """One line a layer over the epochs, from the first of `depth` layers (dark) to the last."""
    for line, color in zip(np.asarray(values, float).T, _colors(depth), strict=False):
        axes.plot(np.arange(1, len(line) + 1), line, color=color, linewidth=1.6)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def depth_scale(figure: Figure, panels: np.ndarray, depth: int) -> None:
    """The colours of `layers` as a bar beside the panels."""
    scale = plt.cm.ScalarMappable(Normalize(0.5, depth + 0.5), ListedColormap(_colors(depth)))
    ticks = range(1, depth + 1) if depth <= 12 else sorted({1, (depth + 1) // 2, depth})
    figure.colorbar(scale, ax=panels, label="layer", ticks=ticks, pad=0.01)


def _colors(depth: int) -> np.ndarray:
    return plt.get_cmap("viridis")(np.linspace(0, 0.85, depth))  # beyond, too pale on white


def _saved(figure: Figure, path: str | Path) -> Figure:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return figure
