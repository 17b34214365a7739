"""The reverse walk beside jax.grad, both jitted, on models of flax.

    python scripts/graph_benchmark.py                          three minutes on two cores
    python scripts/graph_benchmark.py --models LSTM --rounds 51
    python scripts/graph_benchmark.py --write docs

Time is the median of the rounds' own ratios, with its quartiles: where both compile to the same
program, instruction by instruction, what it differs from 1 is noise. Memory is what the compiler
sets aside beside arguments and results; tracing and compiling are timed together, five times in
turn, each time anew.
"""

import dataclasses
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from benchmark import interleave, machine
from flax import nnx
from parts import figures
from parts.arguments import check
from parts.progress import doing, told
from rich.console import Console
from rich.table import Table

import jaxbackprop

Loss = Callable[[Any], jax.Array]


def split(model: nnx.Module, x: jax.Array) -> tuple[Any, Loss]:
    """(params, a scalar function of params)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params: (nnx.merge(graph, params, rest, copy=True)(x) ** 2).mean()


def mlp(rngs: nnx.Rngs) -> tuple[Any, Loss]:
    widths = (784, 512, 512, 10)
    layers = []
    for p, n in itertools.pairwise(widths):
        layers += [nnx.Linear(p, n, rngs=rngs), nnx.relu]
    return split(nnx.Sequential(*layers[:-1]), jax.random.normal(rngs.params(), (256, 784)))


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.strided = nnx.Conv(16, 32, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=False, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.gelu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(nnx.avg_pool(self.strided(x), (2, 2)).mean((1, 2)))


def cnn(rngs: nnx.Rngs) -> tuple[Any, Loss]:
    return split(CNN(rngs), jax.random.normal(rngs.params(), (32, 32, 32, 3)))


def lstm(rngs: nnx.Rngs, steps: int = 64) -> tuple[Any, Loss]:
    model = nnx.RNN(nnx.OptimizedLSTMCell(64, 128, rngs=rngs))
    return split(model, jax.random.normal(rngs.params(), (32, steps, 64)))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(4, 128, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(128, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(128, 512, rngs=rngs), nnx.Linear(512, 128, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


def transformer(rngs: nnx.Rngs) -> tuple[Any, Loss]:
    return split(Block(rngs), jax.random.normal(rngs.params(), (8, 64, 128)))


def scanned(rngs: nnx.Rngs) -> tuple[Any, Loss]:
    """No model of flax: 64 equal layers in one scan."""
    weights = jax.random.normal(rngs.params(), (64, 128, 128)) / 12
    x = jax.random.normal(rngs.params(), (64, 128))

    def loss(weights):
        a, _ = jax.lax.scan(lambda a, W: (jnp.tanh(a @ W), None), x, weights)
        return (a**2).mean()

    return weights, loss


MODELS = {
    "MLP": mlp,
    "CNN": cnn,
    "LSTM": lstm,
    "transformer block": transformer,
    "scan of 64": scanned,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which models, how often, and where to leave the figures."""

    models: tuple[Literal[tuple(MODELS)], ...] = tuple(MODELS)
    """Which models."""
    rounds: int = 31
    """Rounds of both gradients in turn."""
    write: Path = figures.FOLDER
    """The folder for graph_benchmark.json; "docs" for what the documentation says."""

    def __post_init__(self) -> None:
        check(self, rounds=3)


def compile_seconds(transform: Callable, loss: Loss, params: Any) -> float:
    """To trace and compile anew: a new function is in none of jax's caches."""
    begin = time.perf_counter()
    jax.jit(transform(lambda params: loss(params))).lower(params).compile()
    return time.perf_counter() - begin


def measure(make: Callable, rounds: int) -> dict[str, Any]:
    """Of one model: ratios of time, memory and compile time, ours over jax's."""
    params, loss = make(nnx.Rngs(0))
    transforms = {"ours": jaxbackprop.grad, "jax": jax.grad}
    programs = {name: jax.jit(t(loss)).lower(params).compile() for name, t in transforms.items()}
    agree(*(program(params) for program in programs.values()))
    calls = {
        name: lambda program=program: jax.block_until_ready(program(params))
        for name, program in programs.items()
    }
    times = {name: np.array(t) for name, t in interleave(calls, rounds).items()}
    memory = {n: p.memory_analysis().temp_size_in_bytes for n, p in programs.items()}
    compiling = {name: [] for name in transforms}
    for _ in range(5):
        jax.clear_caches()
        for name, transform in transforms.items():
            jax.clear_caches()
            compiling[name].append(compile_seconds(transform, loss, params))
    same = len({instructions(program.as_text()) for program in programs.values()}) == 1
    ratios = np.quantile(times["ours"] / times["jax"], (0.25, 0.5, 0.75))
    compiled = np.median(np.array(compiling["ours"]) / np.array(compiling["jax"]))
    return {
        "seconds": {name: float(np.median(t)) for name, t in times.items()},
        "same_program": same,
        "time_ratio": [float(ratio) for ratio in ratios],
        "temporary_bytes": memory,
        "memory_ratio": memory["ours"] / memory["jax"],
        "compile_seconds": {name: float(np.median(t)) for name, t in compiling.items()},
        "compile_ratio": float(compiled),
    }


def instructions(compiled: str) -> str:
    """A compiled program, its names replaced by their order, and nothing said of where they are
    from."""
    begin = re.search(r"^(?:%|ENTRY)", compiled, re.MULTILINE)
    text = re.sub(r", metadata=\{[^}]*\}", "", compiled[begin.start() if begin else 0 :])
    numbers = {}
    return re.sub(
        r"%[\w.\-]+|[\w.\-]+(?=: )",
        lambda name: numbers.setdefault(name[0].removeprefix("%"), f"%{len(numbers)}"),
        text,
    )


def agree(ours: Any, theirs: Any) -> None:
    """Exit unless the two gradients are one: a table of different work says nothing."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    size = max(float(jnp.linalg.norm(b)) for _, b in pairs)
    if any(float(jnp.linalg.norm(a - b)) > 1e-4 * size for a, b in pairs):
        sys.exit("the two gradients differ: nothing to compare")


@told
def main(options: Options) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    head, found = machine(), {}
    table = Table(title="jaxbackprop.grad / jax.grad, jitted", title_justify="left")
    names = ("time", "quartiles", "ours ms", "jax ms", "memory", "ours MiB", "jax MiB", "compile")
    for name in ("model", *names, "ours s", "jax s", "program"):
        narrow = name.replace(" ", "\n")
        table.add_column(narrow, justify="left" if name == "model" else "right", no_wrap=True)
    for name in options.models:
        doing(name)
        row = found[name] = measure(MODELS[name], options.rounds)
        low, middle, high = row["time_ratio"]
        milliseconds = [f"{1e3 * row['seconds'][who]:.3g}" for who in ("ours", "jax")]
        mebibytes = [f"{row['temporary_bytes'][who] / 2**20:.2f}" for who in ("ours", "jax")]
        compiling = [f"{row['compile_seconds'][who]:.2f}" for who in ("ours", "jax")]
        cells = [name, f"{middle:.2f}", f"{low:.2f}–{high:.2f}", *milliseconds]
        cells += [f"{row['memory_ratio']:.2f}", *mebibytes, f"{row['compile_ratio']:.2f}"]
        table.add_row(*cells, *compiling, "the same" if row["same_program"] else "another")
    for name, value in head.items():
        console.print(f"{name}: {value}")
    console.print(table)
    options.write.mkdir(parents=True, exist_ok=True)
    path = options.write / "graph_benchmark.json"
    path.write_text(json.dumps({"head": head, "models": found}, indent=1) + "\n")
    console.print(f"see {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
