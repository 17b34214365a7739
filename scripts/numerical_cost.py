"""What a gradient costs without backpropagation: central differences against the backward pass.

    python scripts/numerical_cost.py

Central differences take 2n evaluations of the cost for n parameters; backpropagation takes one
forward and one backward pass, whatever n is. Both are jitted, and timed on the same network.
"""

import dataclasses
import datetime
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, backprop, init, loss
from jaxbackprop.check import numerical_gradient

WIDTHS = (26, 94, 311)  # of two hidden layers: about 10³, 10⁴ and 10⁵ parameters


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    batch: int = 32
    """Examples."""
    seed: int = 0
    """Decides weights and data."""


def seconds(f: Callable, *args: object, repeat: int) -> float:
    """The median time of `repeat` calls after the first."""
    f = jax.jit(f)
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - begin)
    return sorted(times)[repeat // 2]


def measure(width: int, options: Options) -> tuple[int, float, float]:
    """(parameters, seconds of central differences, seconds of backpropagation)."""
    network = Network((8, width, width, 4), "tanh")
    keys = jax.random.split(jax.random.key(options.seed), 3)
    params = init(network, keys[0])
    x = jax.random.normal(keys[1], (8, options.batch))
    y = jax.random.uniform(keys[2], (4, options.batch))
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    numerical = numerical_gradient(lambda params: loss(network, params, x, y))
    by_steps = seconds(numerical, params, repeat=1 if n > 10_000 else 5)
    by_hand = seconds(lambda params: backprop(network, params, x, y), params, repeat=101)
    return n, by_steps, by_hand


def main(options: Options) -> None:
    table = Table(
        title=f"{datetime.date.today()}, {platform.machine()}, {jax.default_backend()}, "
        f"jax {jax.__version__}, batch {options.batch}, {jnp.float32.dtype.name}",
        title_justify="left",
    )
    for name in ("parameters", "evaluations", "central differences", "backpropagation", "ratio"):
        table.add_column(name, justify="right")
    for width in WIDTHS:
        n, by_steps, by_hand = measure(width, options)
        table.add_row(
            f"{n:,}",
            f"{2 * n:,}",
            duration(by_steps),
            duration(by_hand),
            f"{by_steps / by_hand:,.0f}",
        )
    # Ten times the parameters: ten times the evaluations, each ten times as long; and one of those.
    by_steps, by_hand = 100 * by_steps * (1e5 / n) ** 2, 10 * by_hand * 1e5 / n
    table.add_row(
        "1,000,000*",
        "2,000,000",
        duration(by_steps),
        duration(by_hand),
        f"{by_steps / by_hand:,.0f}",
    )
    console = Console(highlight=False)
    console.print(table)
    console.print("* extrapolated: evaluations × 10, each × 10; not measured")


def duration(seconds: float) -> str:
    if seconds >= 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    main(tyro.cli(Options))
