"""The text's figure: the graph of f(x, y) = (x + y)·y at (2, 3), with its gradients.

    python scripts/draw_graph.py docs/graph.svg

Along the solid edges the values go forward, along the dashed ones the gradients come back.
"""

import pathlib
import sys

from jaxbackprop import inspect


def f(x, y):
    return (x + y) * y


if __name__ == "__main__":
    inspection = inspect(f, argnums=(0, 1))(2.0, 3.0)
    pathlib.Path(sys.argv[1]).write_text(inspection.draw(), encoding="utf-8")
    print(inspection)
