"""What a gradient costs by central differences, and by backpropagation.

    python scripts/numerical_cost.py
    python scripts/numerical_cost.py --batch 1 --largest 10000

n weights need 2n forward passes one way and a forward and a backward pass the other. Up to
`--largest` everything is measured; the row of ten times as many weights is an extrapolation, with
2n evaluations that each cost in proportion to n, and is marked ≈. It takes
about a minute.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from parts.arguments import check
from parts.measure import machine
from parts.progress import doing, told
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, backprop, init, loss
from jaxbackprop.check import numerical_gradient

INPUTS, OUTPUTS = 64, 10
COUNTED = 20_000  # evaluations: a callback for each takes longer than the evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """Which networks to measure."""

    batch: int = 16
    """Examples in a forward pass."""
    largest: int = 100_000
    """The largest number of weights that is measured, in steps of ten from 1,000."""
    seed: int = 0
    """Decides weights and data."""

    def __post_init__(self) -> None:
        check(self, batch=1, largest=1000)


def example(n: int, options: Options) -> tuple[Network, Any, jax.Array, jax.Array]:
    """A network of about n weights, the nearest that one hidden layer gives, with data."""
    hidden = max(1, round((n - OUTPUTS) / (INPUTS + OUTPUTS + 1)))
    network = Network((INPUTS, hidden, OUTPUTS))
    keys = jax.random.split(jax.random.key(options.seed), 3)
    x = jax.random.normal(keys[1], (INPUTS, options.batch))
    y = jax.random.uniform(keys[2], (OUTPUTS, options.batch))
    return network, init(network, keys[0]), x, y


def seconds(f: Callable, *args: Any, rounds: int) -> tuple[Any, float]:
    """The compiled f's result and median time; compilation does not count."""
    compiled, times = jax.jit(f).lower(*args).compile(), []
    for _ in range(rounds):
        begin = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begin)
    return result, float(np.median(times))


def evaluations(cost: Callable, params: Any) -> int:
    """How often a numerical gradient evaluates the cost, counted."""
    calls = []

    def counted(params: Any) -> jax.Array:
        value = cost(params)
        jax.debug.callback(lambda _: calls.append(1), value)
        return value

    jax.block_until_ready(jax.jit(numerical_gradient(counted))(params))
    jax.effects_barrier()
    return len(calls)


def norm(tree: Any) -> float:
    return float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree))))


class Row(NamedTuple):
    """A network: its weights, and what its gradient takes both ways."""

    size: int
    count: str  # evaluations
    by_steps: float  # seconds, as the next
    by_hand: float
    error: float | None  # None where it is extrapolated


def measured(n: int, options: Options, last: Row | None) -> Row:
    """Of a network of about n weights; by differences extrapolated where n is above --largest."""
    network, params, x, y = example(n, options)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    doing(f"{size:,} weights")
    (_, exact), by_hand = seconds(lambda p: backprop(network, p, x, y), params, rounds=15)
    if n > options.largest and last:  # 2n evaluations, each in proportion to n
        longer = last.by_steps * (size / last.size) ** 2
        return Row(size, f"{2 * size:,} = 2n", longer, by_hand, None)

    def cost(params: Any) -> jax.Array:
        return loss(network, params, x, y)

    rounds = 3 if n < 100_000 else 1
    numerical, by_steps = seconds(numerical_gradient(cost), params, rounds=rounds)
    gap = norm(jax.tree.map(jnp.subtract, numerical, exact)) / norm(exact)
    counted = 2 * size <= 1.1 * COUNTED
    count = f"{evaluations(cost, params):,}" if counted else f"{2 * size:,} = 2n"
    return Row(size, count, by_steps, by_hand, gap)


@told
def main(options: Options) -> None:
    sizes = f"[{INPUTS}, hidden, {OUTPUTS}], sigmoid, batch {options.batch}, float32"
    table = Table(title=f"{sizes}\n{machine()}", title_justify="left")
    for name in ("weights", "evaluations", "differences", "backprop", "ratio", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    n, row = 1000, None
    while n <= 10 * options.largest:
        row = measured(n, options, row)
        mark = "≈ " if row.error is None else ""
        table.add_row(
            f"{row.size:,}",
            row.count,
            f"{mark}{row.by_steps:,.3g} s",
            f"{row.by_hand * 1e3:.2g} ms",
            f"{mark}{row.by_steps / row.by_hand:,.2g}",
            "" if row.error is None else f"{row.error:.0e}",
        )
        n *= 10
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "≈ extrapolated from the row above: (ratio of n)² in time. error: ‖Δ‖ / ‖backprop‖"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
