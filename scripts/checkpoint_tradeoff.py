"""Memory against time: everything stored, every k-th activation, budgets, and jax's own ways.

    python scripts/checkpoint_tradeoff.py             144 layers of 256, batch 2048: five minutes
    python scripts/checkpoint_tradeoff.py --quick     64 layers of 128, batch 512: half a minute

Prints a table, the bars that this library holds itself to, and leaves a figure and the numbers as
JSON. The curve in the figure is an estimate: the fewest layer evaluations for so many bytes, at the
time of one in the run with everything stored. A measured point may lie below it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command  # noqa: F401
import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.ticker import LogLocator
from parts import figures
from parts.measure import compiled, interleaved, machine, ratio, temporary_bytes, verdict
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, backprop, checkpoint, init, loss, stack, unstack
from jaxbackprop.checkpoint.planning import MIB, best, best_plan, every_plan, least, shape_of
from jaxbackprop.checkpoint.schedule import steps


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    depth: int = 144
    """Equal hidden layers."""
    width: int = 256
    """Units of each."""
    batch: int = 2048
    """Examples."""
    rounds: int = 7
    """Turns of each competitor."""
    quick: bool = False
    """A small network in half a minute; leaves no figure."""
    bars: bool = True
    """Measure full storage and compile times against their bars as well."""
    write: Path = figures.FOLDER
    """The folder for what it makes; "docs" for what the documentation shows."""


def problem(depth: int, width: int, batch: int) -> tuple[Network, Any, jax.Array, jax.Array]:
    network = Network((width,) * (depth + 2), "tanh", "identity")
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(key, (width, batch)) for key in keys[1:])
    return network, stack(init(network, keys[0])), x, y


def by_hand(strategy: Any) -> Callable:
    return functools.partial(backprop, checkpoint=strategy)


def measured(functions: dict[str, Callable], arguments: tuple, rounds: int) -> tuple[dict, dict]:
    """Seconds of each in each round; temporary bytes and compile time."""
    programs, facts = {}, {}
    for name, f in functions.items():
        programs[name], seconds = compiled(f, *arguments, static_argnums=0)
        facts[name] = {"bytes": temporary_bytes(programs[name]), "compile": seconds}
    calls = {name: functools.partial(f, *arguments[1:]) for name, f in programs.items()}
    return interleaved(calls, rounds), facts


AUTOMATIC = jax.value_and_grad(loss, argnums=1)


def tradeoff(options: Options, console: Console) -> None:
    arguments = problem(options.depth, options.width, options.batch)
    shape = shape_of(arguments[0], arguments[1], options.batch)
    root = round(options.depth**0.5)
    full = every_plan(shape, 1).bytes
    budgets = [int(b) for b in np.geomspace(1.05 * least(shape).bytes, full / 3, 5)]
    if (options.depth, options.width, options.batch) == (144, 256, 2048):
        budgets[1] = 16 * MIB
    functions = {"all stored": backprop, "jax.grad of the scan": AUTOMATIC}
    plans = {"all stored": every_plan(shape, 1)}
    for k in sorted({root // 2, root, 3 * root}):
        functions[f"every({k})"] = by_hand(checkpoint.every(k))
        plans[f"every({k})"] = every_plan(shape, k)
        functions[f"jax.checkpoint, {k} layers"] = by_hand(checkpoint.jax_segments(k))
    for room in budgets:
        name = f"within({room / MIB:.1f} MiB)"
        functions[name] = by_hand(checkpoint.within(room))
        plans[name] = best_plan(shape, room)
    seconds, facts = measured(functions, arguments, options.rounds)

    table = Table(title=f"{shape}, {machine()}")
    for name in (
        "",
        "ms",
        "to all stored",
        "temporary MiB",
        "planned MiB",
        "evaluations",
        "compile s",
    ):
        table.add_column(name, justify="right" if name else "left")
    for name in functions:
        found = plans.get(name)
        middle, *_ = ratio(seconds, name, "all stored")
        facts[name] |= {"ms": 1e3 * float(np.median(seconds[name])), "to all stored": middle}
        if found:
            facts[name] |= {"planned": found.bytes, "evaluations": found.evaluations}
        if name.startswith("within"):
            facts[name]["room"] = budgets.pop(0)
        table.add_row(
            name,
            f"{facts[name]['ms']:.0f}",
            f"{middle:.2f}",
            f"{facts[name]['bytes'] / MIB:.1f}",
            f"{found.bytes / MIB:.1f}" if found else "",
            f"{found.evaluations}" if found else "",
            f"{facts[name]['compile']:.2f}",
        )
    console.print(table)
    if not options.quick:
        path = draw(options, shape, facts)
        path.with_suffix(".json").write_text(
            json.dumps({"machine": machine(), "shape": str(shape), "measured": facts}, indent=1)
        )
        console.print(f"see {path} and {path.with_suffix('.json')}")
    bars_of_segments(options, seconds, facts, root, console)


def bars_of_segments(
    options: Options, seconds: dict, facts: dict, k: int, console: Console
) -> None:
    """every(√depth) against jax.checkpoint with the same segments, and a budget's evaluations."""
    ours, theirs = f"every({k})", f"jax.checkpoint, {k} layers"
    memory = facts[ours]["bytes"] / facts[theirs]["bytes"]
    time = ratio(seconds, ours, theirs)[0]
    floor = facts[ours]["bytes"] / (2 * k * options.width * options.batch * 4)
    console.print(
        f"{ours} to {theirs}: memory {memory:.2f} (at most 0.55 {verdict(memory, 0.55)}), "
        f"time {time:.2f} (at most 0.95 {verdict(time, 0.95)}), memory {floor:.2f} of {2 * k} "
        f"activations (at most 1.15 {verdict(floor, 1.15)})"
    )
    state = options.width * options.batch * 4
    for name in [n for n in facts if n.startswith("within")]:
        room, count = facts[name]["room"], facts[name]["evaluations"]
        slots = room // state
        fits = "fits" if facts[name]["bytes"] <= room else "does NOT fit"
        working = (room - options.width**2 * 4) // state - 2  # δ and a product, a slice of W
        console.print(
            f"{name}: {fits}; {count} evaluations. The binomial optimum is "
            f"{steps(options.depth + 1, working) + 1} with the {working} activations that δ, a "
            f"product and W leave room for; with {slots}, all that the room holds, it would be "
            f"{steps(options.depth + 1, slots) + 1}"
        )


def draw(options: Options, shape: Any, facts: dict) -> Path:
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    kinds = {
        "all stored": ("tab:blue", "o", "by hand: all stored"),
        "every": ("tab:blue", "s", "by hand: every k-th stored (k beside it)"),
        "within": ("tab:blue", "D", "by hand: within so many bytes"),
        "jax.grad": ("tab:orange", "o", "jax.grad of the scan"),
        "jax.checkpoint": ("tab:orange", "s", "jax.checkpoint of k layers (k beside it)"),
    }
    for start, (color, marker, label) in kinds.items():
        names = [name for name in facts if name.startswith(start)]
        points = [(facts[n]["bytes"] / MIB, facts[n]["ms"]) for n in names]
        axes.scatter(*zip(*points, strict=True), color=color, marker=marker, label=label, zorder=3)
        for name, point in zip(names, points, strict=True):
            if start in ("every", "jax.checkpoint"):
                k = name.split("(")[1][:-1] if "(" in name else name.split()[1]
                above = start == "jax.checkpoint"
                axes.annotate(
                    k.removesuffix(" layers"),
                    point,
                    xytext=(0, 8 if above else -16),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=color,
                )
    stored = facts["all stored"]
    each = stored["ms"] / (3 * stored["evaluations"])  # forward is a third of the products
    rooms = np.geomspace(min(fact["bytes"] for fact in facts.values()) * 0.95, stored["bytes"], 200)
    found = [(room, best(shape, int(room))) for room in rooms]
    curve = [
        (room / MIB, stored["ms"] + each * (plan.evaluations - stored["evaluations"]))
        for room, plan in found
        if plan
    ]
    axes.plot(
        *zip(*curve, strict=True),
        color="gray",
        linewidth=1,
        label="fewest evaluations that fit, at the\npace of the run with all stored",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(
        xlabel="temporary memory, MiB",
        ylabel="time of one gradient, ms",
        title=f"{options.depth} layers of {options.width}, batch {options.batch}",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    return figures.save(figure, options.write, "checkpoint_tradeoff", dpi=130)


def bars_of_stacks(console: Console, quick: bool) -> None:
    """Full storage against jax.grad over the same scan and over the unrolled network."""
    depth = 64 if quick else 256
    network, params, x, y = problem(depth, 128, 64)
    functions = {
        "by hand": backprop,
        "of the scan": AUTOMATIC,
        "unrolled": lambda n, p, x, y: AUTOMATIC(n, unstack(p), x, y),
    }
    seconds, facts = measured(functions, (network, params, x, y), 15)
    memory = facts["by hand"]["bytes"] / facts["of the scan"]["bytes"]
    time = ratio(seconds, "by hand", "of the scan")[0]
    unrolled = ratio(seconds, "by hand", "unrolled")[0]
    compiling = facts["by hand"]["compile"] / facts["unrolled"]["compile"]
    console.print(
        f"{depth} layers of 128, batch 64, all stored; to jax.grad of the scan memory {memory:.2f} "
        f"(at most 0.40 {verdict(memory, 0.4)}), time {time:.2f} (at most 0.85 "
        f"{verdict(time, 0.85)}); to jax.grad unrolled: time {unrolled:.2f} (at most 0.15 "
        f"{verdict(unrolled, 0.15)}), compile time {compiling:.3f} (at most 0.1 "
        f"{verdict(compiling, 0.1)})"
    )


def bars_of_compiling(console: Console) -> None:
    """Compile time does not grow with depth."""
    for name, strategy in (("all stored", None), ("every(12)", checkpoint.every(12))):
        times = {depth: [] for depth in (16, 1024)}
        for _ in range(5):
            for depth, found in times.items():
                jax.clear_caches()
                found.append(
                    compiled(by_hand(strategy), *problem(depth, 32, 8), static_argnums=0)[1]
                )
        share = float(np.median(np.array(times[1024]) / np.array(times[16])))
        console.print(
            f"compile time of {name} at 1024 layers to that at 16: {share:.2f} "
            f"(at most 1.3 {verdict(share, 1.3)})"
        )


def main(options: Options) -> None:
    console = Console(highlight=False, width=110)
    if options.quick:
        options = dataclasses.replace(options, depth=64, width=128, batch=512)
    tradeoff(options, console)
    if options.bars:
        bars_of_stacks(console, options.quick)
        bars_of_compiling(console)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
