"""Where the scripts leave their figures: under runs/, or in the folder that --write names."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

FOLDER = Path("runs")


def save(figure: Figure, folder: Path, name: str, dpi: int = 110) -> Path:
    """The figure as folder/name.png; returns that path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    return path
