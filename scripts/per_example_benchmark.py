"""Per-example gradients against vmap(jax.grad) and against one ordinary gradient of the batch.

python scripts/per_example_benchmark.py                      # a perceptron, and as a network
python scripts/per_example_benchmark.py --models cnn lstm short transformer
python scripts/per_example_benchmark.py --rounds 31 --microbatch 8

Takes some minutes, more with more models and rounds.

The perceptron has two twins, since XLA treats them differently: vmap(grad) of a function that
multiplies a matrix with a vector, whose outer products are fused into the norms, and of one that
multiplies it with a matrix of one column, whose are not. A model takes a minute or two.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from benchmark_parts.per_example_models import MODELS, Model
from parts.arguments import check
from parts.measure import compiled, interleaved, machine, ratio, temporary_bytes, verdict
from parts.progress import doing, told
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, init, loss, per_example

BARS = {  # of the time of value_and_grad, by model: norms, clipped mean
    "mlp": (0.8, 1.2),
    "cnn": (None, 1.5),
    "short": (0.85, 1.1),
    "lstm": (None, 1.4),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    models: tuple[Literal["mlp", "cnn", "short", "lstm", "transformer"], ...] = ("mlp",)
    """Which models: a perceptron, a CNN, a transformer with 32 tokens, an LSTM, one with 128."""
    batch: int | None = None
    """Examples; each model has its own number."""
    microbatch: int = 4
    """Examples at a time of those competitors that go through the batch in a scan."""
    rounds: int = 15
    """Turns of each competitor."""
    slow: bool = True
    """Measure the competitors too that hold a gradient of every example at once."""

    def __post_init__(self) -> None:
        check(self, batch=1, microbatch=1, rounds=1)


def norms_by_vmap(f: Callable, params: Any, batch: Any) -> jax.Array:
    found = jax.vmap(jax.grad(f), (None, 0))(params, batch)
    return jnp.sqrt(sum((g**2).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(found)))


def clipped_by_vmap(f: Callable, bound: float, params: Any, batch: Any) -> Any:
    return jax.tree.map(
        lambda g: g / len(jax.tree.leaves(batch)[0]), clipped_sum(f, bound, params, batch)
    )


def clipped_sum(f: Callable, bound: float, params: Any, batch: Any) -> Any:
    found = jax.vmap(jax.grad(f), (None, 0))(params, batch)
    norms = jnp.sqrt(sum((g**2).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(found)))
    share = jnp.minimum(1, bound / norms)
    return jax.tree.map(lambda g: jnp.tensordot(share, g, 1), found)


def clipped_by_scan(f: Callable, bound: float, size: int, params: Any, batch: Any) -> Any:
    """vmap(grad) of a few examples at a time."""
    m = len(jax.tree.leaves(batch)[0])
    parts = jax.tree.map(lambda x: x.reshape(m // size, size, *x.shape[1:]), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, clipped_sum(f, bound, params, part)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    return jax.tree.map(lambda g: g / m, total)


def batched(f: Callable) -> Callable:
    def mean(params, batch):
        return jnp.mean(jax.vmap(f, (None, 0))(params, batch))

    return jax.value_and_grad(mean)


def competitors(model: Model, options: Options) -> dict[str, Callable]:
    f, size = model.f, options.microbatch
    found = {
        "value_and_grad": batched(f),
        "gradient_norms": per_example.gradient_norms(f),
        "clipped_mean": per_example.clipped_mean(f, 1.0),
        f"clipped_mean, {size} at a time": per_example.clipped_mean(f, 1.0, microbatch=size),
        "second_moment": per_example.second_moment(f),
        f"clipped, vmap(grad), {size} at a time": functools.partial(clipped_by_scan, f, 1.0, size),
    }
    if advised := advice(model):
        ours = per_example.clipped_mean(f, 1.0, microbatch=advised)
        found[f"clipped_mean, {advised} at a time"] = ours
    if options.slow:
        found["norms, vmap(grad)"] = functools.partial(norms_by_vmap, f)
        found["clipped, vmap(grad)"] = functools.partial(clipped_by_vmap, f, 1.0)
    return found


def advice(model: Model) -> int | None:
    """How many examples at a time `plan` advises."""
    example = jax.tree.map(lambda x: x[0], model.batch)
    return per_example.plan(model.f)(model.params, example).microbatch


def of_a_network(model: Model) -> dict[str, tuple[Callable, tuple]]:
    """The perceptron as a network: the closed forms of the dense wing, and the other twin."""
    sizes = (model.params[0][0].shape[0], *(W.shape[1] for W, _ in model.params))
    network = Network(sizes, "relu", "softmax", "cross_entropy")
    params = init(network, jax.random.key(0))
    x, labels = model.batch
    columns = x.T, jax.nn.one_hot(labels, sizes[-1]).T
    rows = tuple(v.T for v in columns)

    def cost(params, example):
        return loss(network, params, *(v[:, None] for v in example))

    return {
        "gradient_norms of a network": (per_example.gradient_norms(network), (params, columns)),
        "clipped_mean of a network": (per_example.clipped_mean(network, 1.0), (params, columns)),
        "norms, vmap(grad) of columns": (functools.partial(norms_by_vmap, cost), (params, rows)),
    }


def measure(name: str, options: Options, console: Console) -> None:
    model = MODELS[name](options.batch)
    calls = {n: (f, (model.params, model.batch)) for n, f in competitors(model, options).items()}
    if name == "mlp":
        calls |= of_a_network(model)
    doing(f"{name}: compiling")
    programs = {n: compiled(f, *arguments)[0] for n, (f, arguments) in calls.items()}
    doing(f"{name}: measuring")
    seconds = interleaved(
        {n: functools.partial(programs[n], *arguments) for n, (_, arguments) in calls.items()},
        options.rounds,
    )
    m = len(jax.tree.leaves(model.batch)[0])
    table = Table(title=f"{name}, batch {m}\n{machine()}")
    for column in ("", "ms", "to value_and_grad", "quartiles", "temporary MiB"):
        table.add_column(column, justify="right" if column else "left")
    for n in calls:
        middle, low, high = ratio(seconds, n, "value_and_grad")
        table.add_row(
            n,
            f"{sorted(seconds[n])[options.rounds // 2] * 1e3:.2f}",
            f"{middle:.2f}",
            f"{low:.2f} … {high:.2f}",
            f"{temporary_bytes(programs[n]) / 2**20:.1f}",
        )
    console.print(table)
    judge(name, seconds, options, console)
    if name == "transformer":
        judge_advice(f"clipped_mean, {advice(model)} at a time", seconds, programs, console)


def judge_advice(ours: str, seconds: dict, programs: dict, console: Console) -> None:
    """Beside the fastest of vmap(grad) and its scan: the time, or the bytes in no more time."""
    twins = [n for n in seconds if n.startswith("clipped, vmap(grad)")]
    twin = min(twins, key=lambda n: np.median(seconds[n]))
    time = ratio(seconds, ours, twin)[0]
    room = temporary_bytes(programs[ours]) / temporary_bytes(programs[twin])
    share = room if 0.95 < time <= 1 else time
    console.print(
        f"{ours}, as plan advises: {time:.2f} of the time and {room:.2f} of the bytes of {twin}: "
        f"at most 0.95 of the time, or of the bytes in no more time {verdict(share, 0.95)}"
    )


def judge(name: str, seconds: dict, options: Options, console: Console) -> None:
    """The bars of this model."""

    def line(what, to, bar):
        found = ratio(seconds, what, to)[0]
        console.print(f"{what} {found:.2f} of {to}: at most {bar} {verdict(found, bar)}")

    norms, clipped = BARS.get(name, (None, None))
    if norms:
        line("gradient_norms", "value_and_grad", norms)
    if clipped:
        line("clipped_mean", "value_and_grad", clipped)
    scan = f"clipped, vmap(grad), {options.microbatch} at a time"
    if name == "mlp":
        line("gradient_norms", "gradient_norms of a network", 1.05)
        line("clipped_mean", "clipped_mean of a network", 1.05)
    if name == "cnn":
        line("clipped_mean", scan, 0.25)


@told
def main(options: Options) -> None:
    for name in options.models:
        measure(name, options, Console(highlight=False))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
