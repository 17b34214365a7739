"""Per-example quantities against vmap(jax.grad) and against one ordinary gradient.

python scripts/per_example_benchmark.py
python scripts/per_example_benchmark.py --batch 1024 --rounds 7
"""

import dataclasses
import functools

import jax
import tyro
from measure import compiled, interleaved, machine, ratio, temporary_bytes, verdict
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, init, loss, per_example


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    sizes: tuple[int, ...] = (784, 512, 512, 10)
    """Layer widths, input first."""
    batch: int = 256
    """Examples."""
    rounds: int = 15
    """Turns of each competitor."""


def main(options: Options) -> None:
    network = Network(options.sizes, "relu", "softmax", "cross_entropy")
    keys = jax.random.split(jax.random.key(0), 3)
    params = init(network, keys[0])
    x = jax.random.normal(keys[1], (options.sizes[0], options.batch))
    y = jax.nn.softmax(jax.random.normal(keys[2], (options.sizes[-1], options.batch)), axis=0)

    def one(x, y):
        return jax.grad(loss, argnums=1)(network, params, x[:, None], y[:, None])

    def norms_by_vmap(network, params, x, y):
        gradients = jax.vmap(one, in_axes=1)(x, y)
        return sum((leaf**2).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(gradients))

    functions = {
        "value_and_grad": jax.value_and_grad(loss, argnums=1),
        "norms, vmap(grad)": norms_by_vmap,
        "gradient_norms": per_example.gradient_norms,
        "clipped_mean": functools.partial(per_example.clipped_mean, max_norm=1.0),
        "second_moment": per_example.second_moment,
    }
    programs = {
        name: compiled(f, network, params, x, y, static_argnums=0)[0]
        for name, f in functions.items()
    }
    calls = {name: functools.partial(f, params, x, y) for name, f in programs.items()}
    seconds = interleaved(calls, options.rounds)

    table = Table(title=f"{list(options.sizes)}, batch {options.batch}\n{machine()}")
    for name in ("", "ms", "to value_and_grad", "quartiles", "temporary MiB"):
        table.add_column(name, justify="right" if name else "left")
    for name in functions:
        middle, low, high = ratio(seconds, name, "value_and_grad")
        table.add_row(
            name,
            f"{sorted(seconds[name])[options.rounds // 2] * 1e3:.2f}",
            f"{middle:.2f}",
            f"{low:.2f} … {high:.2f}",
            f"{temporary_bytes(programs[name]) / 2**20:.1f}",
        )
    console = Console(highlight=False)
    console.print(table)
    faster = 1 / ratio(seconds, "gradient_norms", "norms, vmap(grad)")[0]
    norms = ratio(seconds, "gradient_norms", "value_and_grad")[0]
    clipped = ratio(seconds, "clipped_mean", "value_and_grad")[0]
    console.print(
        f"gradient_norms {faster:.0f} × faster than vmap(grad): at least 40 {verdict(40, faster)}\n"
        f"gradient_norms {norms:.2f} of value_and_grad: at most 0.7 {verdict(norms, 0.7)}\n"
        f"clipped_mean {clipped:.2f} of value_and_grad: at most 1.9 {verdict(clipped, 1.9)}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
