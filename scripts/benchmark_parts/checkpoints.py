"""The figure of `checkpoint_tradeoff.py`: memory against time, measured and estimated."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from parts import figures

from jaxbackprop.checkpoint.planning import MIB, best

KINDS = {  # by how a name begins: colour, marker, what it is
    "all stored": ("tab:blue", "o", "by hand: all stored"),
    "every": ("tab:blue", "s", "by hand: every k-th stored (k beside it)"),
    "within": ("tab:blue", "D", "by hand: within so many bytes"),
    "jax.grad": ("tab:orange", "o", "jax.grad of the scan"),
    "jax.checkpoint": ("tab:orange", "s", "jax.checkpoint of k layers (k beside it)"),
}


def draw(title: str, shape: Any, facts: dict[str, dict], folder: Path) -> Path:
    """`facts` has by name the measured bytes and ms, and of what is planned the evaluations."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for kind in KINDS:
        _points(axes, kind, {name: fact for name, fact in facts.items() if name.startswith(kind)})
    axes.plot(
        *_estimated(shape, facts),
        color="gray",
        linewidth=1,
        label="fewest evaluations that fit, at the\npace of the run with all stored",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="temporary memory, MiB", ylabel="time of one gradient, ms", title=title)
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    return figures.save(figure, folder, "checkpoint_tradeoff", dpi=130)


def _points(axes: Axes, kind: str, facts: dict[str, dict]) -> None:
    """What was measured of one kind, with k beside those that have one."""
    color, marker, label = KINDS[kind]
    points = {name: (fact["bytes"] / MIB, fact["ms"]) for name, fact in facts.items()}
    places = zip(*points.values(), strict=True)
    axes.scatter(*places, color=color, marker=marker, label=label, zorder=3)
    for name, point in points.items() if kind in ("every", "jax.checkpoint") else ():
        k = "".join(letter for letter in name if letter.isdigit())
        beside = (0, 8 if kind == "jax.checkpoint" else -16)
        axes.annotate(
            *(k, point, beside),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=color,
        )


def _estimated(shape: Any, facts: dict[str, dict]) -> tuple[list[float], list[float]]:
    """MiB, and the ms of the fewest evaluations for so many, as long as they take all stored."""
    stored, least = facts["all stored"], min(fact["bytes"] for fact in facts.values())
    each = stored["ms"] / (3 * stored["evaluations"])  # forward is a third of the products
    rooms, times = [], []
    for room in np.geomspace(least * 0.95, stored["bytes"], 200):
        plan = best(shape, int(room))
        if plan:
            rooms.append(room / MIB)
            times.append(stored["ms"] + each * (plan.evaluations - stored["evaluations"]))
    return rooms, times
