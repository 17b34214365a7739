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
from typing import Any

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
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
        if self.batch < 1:
            raise ValueError(f"--batch is {self.batch}, expected at least 1")
        if self.largest < 1000:
            raise ValueError(f"--largest is {self.largest}, expected at least 1000")


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


def main(options: Options) -> None:
    table = Table(
        title=f"[{INPUTS}, hidden, {OUTPUTS}], sigmoid, batch {options.batch}, float32, "
        f"{jax.default_backend()}",
        title_justify="left",
    )
    for name in ("weights", "evaluations", "differences", "backprop", "ratio", "error"):
        table.add_column(name, justify="right", no_wrap=True)

    n, last = 1000, (0, 0.0)
    while n <= 10 * options.largest:
        network, params, x, y = example(n, options)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))

        def cost(params: Any, network: Network = network, x=x, y=y) -> jax.Array:
            return loss(network, params, x, y)

        (_, exact), by_hand = seconds(
            lambda params, network=network, x=x, y=y: backprop(network, params, x, y),
            params,
            rounds=15,
        )
        if n > options.largest:  # 2n evaluations, each in proportion to n
            by_steps, error, mark = last[1] * (size / last[0]) ** 2, "", "≈ "
            count = f"{2 * size:,} = 2n"
        else:
            numerical, by_steps = seconds(
                numerical_gradient(cost), params, rounds=3 if n < 100_000 else 1
            )
            gap = norm(jax.tree.map(jnp.subtract, numerical, exact)) / norm(exact)
            error, mark, last = f"{gap:.0e}", "", (size, by_steps)
            counted = 2 * size <= 1.1 * COUNTED
            count = f"{evaluations(cost, params):,}" if counted else f"{2 * size:,} = 2n"
        table.add_row(
            f"{size:,}",
            count,
            f"{mark}{by_steps:,.3g} s",
            f"{by_hand * 1e3:.2g} ms",
            f"{mark}{by_steps / by_hand:,.2g}",
            error,
        )
        n *= 10
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "≈ extrapolated from the row above: (ratio of n)² in time. error: ‖Δ‖ / ‖backprop‖"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
