"""Two figures of the results of `benchmark.py`: who takes how long, and how the cost grows."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

PEERS = (
    *("jaxbackprop", "jax.grad", "flax nnx", "equinox"),
    *("torch eager", "torch.compile", "NumPy class"),
)
OWN, OTHER = "tab:blue", "0.75"


def draw(result: dict, folder: Path) -> None:
    """benchmark.png, and benchmark_scaling.png where it was measured."""
    _save(of_works(result["works"]), folder / "benchmark.png")
    if "scaling" in result:
        _save(of_growth(result["scaling"]), folder / "benchmark_scaling.png")


def of_works(works: dict) -> Figure:
    """A bar for each peer: its time of one gradient, the library's being 1."""
    figure, panels = plt.subplots(
        1, len(works), figsize=(2.5 * len(works) + 1, 3.1), sharey=True, squeeze=False
    )
    for axes, (name, work) in zip(panels[0], works.items(), strict=True):
        rows = work["gradient"]
        times = [1 / rows[peer]["ratio"] if peer in rows else 0 for peer in PEERS]
        axes.barh(PEERS, times, color=[OWN, *[OTHER] * (len(PEERS) - 1)])
        for place, time in enumerate(times):
            axes.annotate(
                f"{time:.2f}" if time else "not measured",
                (time, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="black" if time else "0.5",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        axes.axvline(1, color=OWN, linewidth=0.8)
        axes.set(title=name, xlim=(0, 1.25 * max(times)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    figure.suptitle("Time of one gradient, jaxbackprop = 1: shorter is faster")
    figure.tight_layout()
    return figure


def of_growth(curves: dict) -> Figure:
    """Time above, memory below, against width, depth and batch; in gray, what theory has."""
    figure, panels = plt.subplots(2, len(curves), figsize=(11, 6.2), layout="constrained")
    for column, (against, curve) in zip(panels.T, curves.items(), strict=True):
        rate = curve["jaxbackprop"]["seconds"][-1] / curve["flops"][-1]  # at the end
        theories = (np.array(curve["flops"]) * rate * 1e3, np.array(curve["activations"]) / 2**20)
        kinds = (("seconds", 1e3), ("bytes", 2**-20))
        for axes, (kind, unit), theory in zip(column, kinds, theories, strict=True):
            for peer, color in (("jaxbackprop", OWN), ("jax.grad", "tab:orange")):
                measured = np.array(curve[peer][kind]) * unit
                axes.loglog(
                    curve["values"],
                    measured,
                    "o-",
                    markersize=3,
                    color=color,
                    label=peer,
                    zorder=3 - (peer != "jaxbackprop"),
                )
            label = "products alone" if kind == "seconds" else "one activation a layer"
            axes.loglog(curve["values"], theory, "--", color="gray", linewidth=1, label=label)
            axes.set_xticks(curve["values"], [str(v) for v in curve["values"]])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        column[1].set_xlabel(against)
    for axes, label in zip(panels[:, 0], ("time, ms", "temporary memory, MiB"), strict=True):
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
