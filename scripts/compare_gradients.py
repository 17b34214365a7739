"""Compare gradients by hand with jax.grad's and with central differences, layer by layer.

    python scripts/compare_gradients.py
    python scripts/compare_gradients.py --hidden gelu --output softmax --loss cross_entropy
    python scripts/compare_gradients.py --sizes 20 30 30 5 --dtype float64

Errors are normwise, ‖g − ĝ‖ / ‖ĝ‖, in units of eps of the dtype; central differences are taken in
float64. The exit status is 1 where an error is above its gate. It takes some five seconds.
"""

import dataclasses
import functools
import sys
from typing import Any, Literal, NamedTuple

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from parts.arguments import check
from parts.measure import interleaved, ratio
from parts.progress import doing, told
from rich.console import Console
from rich.table import Table

from jaxbackprop import Layer, Network, backprop, init, loss, train, unstack
from jaxbackprop.check import numerical_gradient

ROUNDS = 31  # of the two in turn, for the ratio of their times
NUMERICAL_GATE = 1e-7  # central differences in float64 are right to about 1e-10


@dataclasses.dataclass(frozen=True)
class Options:
    """Which network to compare on."""

    sizes: tuple[int, ...] = (8, 16, 12, 4)
    """Layer widths, input first."""
    hidden: str = "sigmoid"
    """The hidden activation."""
    output: str = "sigmoid"
    """The output activation."""
    loss: str = "squared_error"
    """squared_error, binary_cross_entropy or cross_entropy."""
    batch: int = 32
    """Examples."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Precision of the two gradients that are compared."""
    seed: int = 0
    """Decides weights and data."""

    def __post_init__(self) -> None:
        check(self, batch=1)


def example(network: Network, options: Options) -> tuple[Any, jax.Array, jax.Array]:
    """Random parameters and data; targets are probabilities, which every loss allows."""
    keys = jax.random.split(jax.random.key(options.seed), 3)
    params = init(network, keys[0], options.dtype)
    x = jax.random.normal(keys[1], (network.sizes[0], options.batch), options.dtype)
    y = jax.random.uniform(keys[2], (network.sizes[-1], options.batch), options.dtype)
    return params, x, y / y.sum(0) if network.loss == "cross_entropy" else y


class Row(NamedTuple):
    """Of W or b of a layer: its errors to jax.grad and to differences, where it differs most."""

    name: str
    shape: tuple[int, ...]
    errors: tuple[float, float]  # in units of eps
    largest: float
    at: tuple[int, int]
    ok: bool


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖; 0 / 0 is 0, and anything else / 0 infinite."""
    distance, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(distance / size) if size else float("inf") * distance if distance else 0.0


def compared(layers: tuple[Any, Any, Any], eps: float, gates: tuple[float, float]) -> list[Row]:
    """Of W and b of a layer by hand, by jax.grad and by central differences: a row each."""
    rows = []
    for name in Layer._fields:
        g, ĝ, steps = (np.asarray(getattr(layer, name)).astype("float64") for layer in layers)
        errors = relative(g, ĝ) / eps, relative(g, steps) / eps
        difference = np.abs(g - ĝ)
        at = np.unravel_index(difference.argmax(), g.shape)
        ok = errors[0] <= gates[0] and errors[1] <= gates[1]
        rows.append(Row(name, g.shape, errors, float(difference[at]), (int(at[0]), int(at[1])), ok))
    return rows


def tabled(title: str, rows: dict[int, list[Row]]) -> Table:
    """By layer, counted from 1."""
    table = Table(title=title, title_justify="left")
    for name in ("", "shape", "jax.grad", "largest |Δ|", "at", "central"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for l, of_layer in rows.items():
        for row in of_layer:
            table.add_row(
                f"{row.name}{l}",
                "×".join(map(str, row.shape)),
                f"{row.errors[0]:.2g} eps",
                f"{row.largest:.1e}",
                f"{row.at[0]}, {row.at[1]}",
                f"{row.errors[1]:.2g} eps",
                "ok" if row.ok else "WRONG",
            )
    return table


@told
def main(options: Options) -> bool:
    network = Network(options.sizes, options.hidden, options.output, options.loss)
    params, x, y = example(network, options)
    params64, x64, y64 = jax.tree.map(lambda leaf: leaf.astype("float64"), (params, x, y))
    calls = {
        name: functools.partial(jax.jit(functools.partial(way, network)), params, x, y)
        for name, way in {"by hand": backprop, "jax.grad": train.automatic}.items()
    }
    doing("both gradients in turn")
    seconds = interleaved(calls, ROUNDS)
    (_, manual), (_, automatic) = (call() for call in calls.values())
    doing("central differences")
    numerical = numerical_gradient(lambda p: loss(network, p, x64, y64))(params64)

    eps = float(jnp.finfo(options.dtype).eps)
    gate = 8 * (network.depth + 1)
    gates = gate, max(gate, NUMERICAL_GATE / eps)
    layers = zip(*map(unstack, (manual, automatic, numerical)), strict=True)
    rows = {l: compared(each, eps, gates) for l, each in enumerate(layers, 1)}
    good = all(row.ok for of_layer in rows.values() for row in of_layer)
    title = (
        f"{network.sizes}, {options.hidden}, {options.output}, {options.loss}, "
        f"batch {options.batch}, {options.dtype}, {jax.default_backend()}"
    )
    console = Console(highlight=False)
    console.print(tabled(title, rows))
    middle, low, high = ratio(seconds, "by hand", "jax.grad")
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(
        f"gates: {gate} eps to jax.grad, {gates[1]:.2g} eps to central differences\n"
        f"time by hand / jax.grad: {middle:.2f} (quartiles {low:.2f}–{high:.2f} of {ROUNDS} rounds "
        f"in turn); central differences need {2 * n} evaluations\n"
        + ("all equal" if good else "NOT EQUAL")
    )
    return good


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(0 if main(tyro.cli(Options, description=__doc__)) else 1)
