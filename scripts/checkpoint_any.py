"""Bytes against time for the gradients of models of flax and equinox, under a byte budget.

    python scripts/checkpoint_any.py --quick                 small models, plans only: a minute
    python scripts/checkpoint_any.py --measure               full size, timed: some 20 minutes
    python scripts/checkpoint_any.py --models LSTM MLP
    python scripts/checkpoint_any.py --survey                twelve budgets a model: some 10 minutes

A row is a plan: bytes asked, predicted, compiled; estimated time over that of keeping everything;
with --measure, the median of the rounds' ratios to jax.grad, and a figure of them all. The survey
goes from the least to all, and says whether each program needs no more than asked, no more than
that of a larger budget, and how near the least a budget can be.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import command  # noqa: F401
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from flax import nnx
from matplotlib.ticker import PercentFormatter
from parts import figures
from parts.arguments import check
from parts.measure import compiled, interleaved, machine, ratio, temporary_bytes
from parts.progress import doing, told

from jaxbackprop import checkpoint, value_and_grad

MIB = 2**20
SHARES = (1.0, 0.5, 0.25, 1 / 7, 0.05)


Name = Literal["transformer", "scanned", "CNN", "MLP", "LSTM", "U"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to plan."""

    models: tuple[Name, ...] = get_args(Name)
    """Which models."""
    quick: bool = False
    """Small sizes."""
    measure: bool = False
    """Time the programs too."""
    least: bool = True
    """Tell the least that each can be had in."""
    survey: bool = False
    """Twelve budgets a model, from the least to all, instead."""
    rounds: int = 7
    """Rounds of --measure."""
    write: Path = figures.FOLDER
    """The folder for the figure of --measure."""

    def __post_init__(self) -> None:
        check(self, rounds=1)


class Block(nnx.Module):
    """A transformer's."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


def transformer(quick: bool, scanned: bool = False) -> tuple[Callable, Any]:
    depth, width, shape = (3, 32, (2, 32)) if quick else (8, 256, (8, 256))
    blocks = [nnx.split(Block(width, nnx.Rngs(i))) for i in range(depth)]
    graph, params = blocks[0][0], [params for _, params in blocks]
    x = jax.random.normal(jax.random.key(0), (*shape, width))
    run = lambda x, p: nnx.merge(graph, p)(x)  # noqa: E731
    if scanned:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        step = lambda x, p: (run(x, p), None)  # noqa: E731
        return lambda p: (jax.lax.scan(step, x, p)[0] ** 2).mean(), stacked

    def loss(params):
        out = x
        for p in params:
            out = run(out, p)
        return (out**2).mean()

    return loss, params


def cnn(quick: bool) -> tuple[Callable, Any]:
    features, size, batch = (8, 16, 8) if quick else (32, 32, 64)
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(jax.random.key(1), (batch, size, size, features))
    params = [jax.random.normal(k, (3, 3, features, features)) / (3 * features**0.5) for k in keys]

    def loss(params):
        out = x
        for w in params:
            z = jax.lax.conv_general_dilated(
                out, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            z = (z - z.mean((0, 1, 2))) / jnp.sqrt(z.var((0, 1, 2)) + 1e-5)
            out = jax.nn.relu(z)
        return (out**2).mean()

    return loss, params


def mlp(quick: bool) -> tuple[Callable, Any]:
    width, depth, batch = (32, 8, 128) if quick else (256, 32, 2048)
    model = eqx.nn.MLP(width, width, width, depth, jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jax.random.normal(jax.random.key(1), (batch, width))
    return lambda p: (jax.vmap(eqx.combine(p, static))(x) ** 2).mean(), params


def lstm(quick: bool) -> tuple[Callable, Any]:
    width, steps, batch = (16, 32, 8) if quick else (64, 256, 64)
    cell = eqx.nn.LSTMCell(width, width, key=jax.random.key(0))
    params, static = eqx.partition(cell, eqx.is_inexact_array)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, width))

    def loss(params):
        cell = jax.vmap(eqx.combine(params, static))
        start = (jnp.zeros((batch, width)),) * 2
        return (jax.lax.scan(lambda s, x: (cell(x, s), None), start, xs)[0][0] ** 2).mean()

    return loss, params


def u_net(quick: bool) -> tuple[Callable, Any]:
    width, batch = (32, 128) if quick else (256, 2048)
    keys = jax.random.split(jax.random.key(0), 12)
    params = [jax.random.normal(k, (width, width)) / width**0.5 for k in keys]
    x = jax.random.normal(jax.random.key(1), (batch, width))

    def loss(params):
        out, kept = x, []
        for w in params[:6]:
            kept.append(out)
            out = jax.nn.gelu(out @ w)
        for w in params[6:]:
            out = jax.nn.gelu(out @ w) + kept.pop()
        return (out**2).mean()

    return loss, params


MODELS = {
    "transformer": transformer,
    "scanned": lambda quick: transformer(quick, scanned=True),
    "CNN": cnn,
    "MLP": mlp,
    "LSTM": lstm,
    "U": u_net,
}


class Point(NamedTuple):
    """A program: its bytes asked and compiled as shares of jax.grad's, and its time over that."""

    asked: float
    compiled: float
    time: float


def planned(name: str, loss: Callable, params: Any, whole: int) -> dict[float, Any]:
    """By share of jax.grad's bytes: the plans that there are, each with its row printed."""
    found = {}
    for share in SHARES:
        asked = int(share * whole)
        doing(f"planning {name} in {share:.0%} of jax.grad's bytes")
        try:
            plan = checkpoint.plan(loss, params, bytes=asked)
        except ValueError as error:
            print(f"  {asked / MIB:8.2f}  {error}"[:100])
            continue
        print(
            f"  {asked / MIB:8.2f} asked {plan.bytes / MIB:8.2f} predicted "
            f"{plan.compiled_bytes / MIB:8.2f} compiled, time × {plan.factor:.2f}"
        )
        found[share] = plan
    return found


BUDGETS = 12


def surveyed(name: str, loss: Callable, params: Any, whole: int) -> None:
    """A row a budget, from the least to all, and what holds of them."""
    least = checkpoint.least(loss, params)
    print(f"  the least {least}")
    needed, without = [], 0
    for asked in map(int, np.geomspace(least.bytes, max(whole, least.bytes), BUDGETS)):
        doing(f"planning {name} in {asked / MIB:.2f} MiB")
        try:
            plan = checkpoint.plan(loss, params, bytes=asked)
        except ValueError as error:
            print(f"  {asked / MIB:8.2f} asked: {error}"[:100])
            without = asked
            continue
        needed.append((asked, plan.compiled_bytes))
        print(
            f"  {asked / MIB:8.2f} asked {plan.bytes / MIB:8.2f} predicted "
            f"{plan.compiled_bytes / MIB:8.2f} compiled, time × {plan.factor:.2f}"
        )
    over = sum(compiled > asked for asked, compiled in needed)
    rise = max(a / b for (_, a), (_, b) in itertools.pairwise(needed))
    fewest = min(compiled for _, compiled in needed)
    print(
        f"  {over} over what was asked; with a larger budget at most {max(rise - 1, 0):.1%} less "
        f"is needed; from {needed[0][0] / fewest:.2f} × the fewest bytes of all of them there is a "
        f"plan" + (f", none in {without / MIB:.2f} MiB" if without else "")
    )


def timed(
    name: str, loss: Callable, params: Any, shares: Iterable[float], rounds: int
) -> list[Point]:
    """Each share's program against jax.grad's, and jax.checkpoint around the whole."""
    doing(f"compiling {name}")
    ways = {"jax.grad": jax.value_and_grad(loss), CHECKPOINT: _checkpointed(loss)}
    reference, seconds = compiled(ways["jax.grad"], params)
    whole = temporary_bytes(reference)
    programs, compiling = {"jax.grad": reference}, {}
    programs[CHECKPOINT], compiling[CHECKPOINT] = compiled(ways[CHECKPOINT], params)
    for share in shares:
        budget = checkpoint.within(int(share * whole))
        key = f"{share:.0%}"
        programs[key], compiling[key] = compiled(value_and_grad(loss, checkpoint=budget), params)
    doing(f"measuring {name}")
    calls = {key: functools.partial(program, params) for key, program in programs.items()}
    times = interleaved(calls, rounds)
    points = []
    for share, key in zip((0.0, *shares), list(programs)[1:], strict=True):
        middle, low, high = ratio(times, key, "jax.grad")
        points.append(Point(share, temporary_bytes(programs[key]) / whole, middle))
        print(
            f"  {key}: {middle:.2f} × jax.grad's time ({low:.2f}–{high:.2f}) in "
            f"{points[-1].compiled:.0%} of its bytes; planned and compiled in "
            f"{compiling[key] / seconds:.1f} × its time"
        )
    return points


CHECKPOINT = "jax.checkpoint around all"


def _checkpointed(loss: Callable) -> Callable:
    policy = jax.checkpoint_policies.dots_saveable
    return jax.value_and_grad(jax.checkpoint(loss, policy=policy))


def draw(points: dict[str, list[Point]], folder: Path) -> Path:
    """Bytes against time, a line for each model."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for number, (name, found) in enumerate(points.items()):
        color = f"C{number}"
        (first, *ours) = found
        xs, ys = zip(*[(p.compiled, p.time) for p in ours], strict=True)
        axes.plot(xs, ys, "o-", color=color, markersize=4, label=name)
        axes.plot(first.compiled, first.time, "x", color=color)
    axes.plot([], [], "x", color="gray", label="jax.checkpoint around all,\nproducts kept")
    axes.plot(1, 1, "*", color="black", markersize=12, label="jax.grad")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="temporary memory, of jax.grad's", ylabel="time, of jax.grad's")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)
    return figures.save(figure, folder, "checkpoint_any", dpi=130)


@told
def main(options: Options) -> None:
    print(machine())
    points = {}
    for name in options.models:
        loss, params = MODELS[name](options.quick)
        doing(f"compiling jax.grad of {name}")
        whole = temporary_bytes(compiled(jax.value_and_grad(loss), params)[0])
        print(f"{name}: jax.grad {whole / MIB:.2f} MiB")
        if options.survey:
            surveyed(name, loss, params, whole)
            continue
        if options.least:
            print(f"  the least {checkpoint.least(loss, params)}")
        shares = planned(name, loss, params, whole)
        if options.measure and shares:
            points[name] = timed(name, loss, params, shares, options.rounds)
    if points:
        print(f"see {draw(points, options.write)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
