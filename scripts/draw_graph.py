"""The text's figure: the graph of f(x, y) = (x + y)·y at (2, 3), with its gradients.

    python scripts/draw_graph.py
    python scripts/draw_graph.py --x 1 --y -2 --write docs

Along the solid edges the values go forward, along the dashed ones the gradients come back. It takes
two seconds.
"""

import dataclasses
from pathlib import Path

import command  # noqa: F401
import tyro
from parts import figures
from parts.arguments import check
from rich.console import Console

from jaxbackprop import inspect


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to look, and where to leave the picture."""

    x: float = 2.0
    """The value of x."""
    y: float = 3.0
    """The value of y."""
    write: Path = figures.FOLDER
    """The folder of graph.svg; "docs" for what the documentation shows."""

    def __post_init__(self) -> None:
        check(self)


def f(x, y):
    return (x + y) * y


def main(options: Options) -> None:
    inspection = inspect(f, argnums=(0, 1))(options.x, options.y)
    options.write.mkdir(parents=True, exist_ok=True)
    path = options.write / "graph.svg"
    path.write_text(inspection.draw(), encoding="utf-8")
    console = Console(highlight=False, markup=False, width=120)
    console.print(str(inspection))
    console.print(f"see {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
