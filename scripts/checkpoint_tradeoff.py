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
from typing import Any, NamedTuple

import command  # noqa: F401
import jax
import numpy as np
import tyro
from benchmark_parts.checkpoints import draw
from parts import figures
from parts.arguments import check
from parts.measure import compiled, interleaved, machine, ratio, temporary_bytes, verdict
from parts.progress import doing, told
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, backprop, checkpoint, init, loss, stack, unstack
from jaxbackprop.checkpoint.planning import MIB, best_plan, every_plan, least, shape_of
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

    def __post_init__(self) -> None:
        check(self, depth=4, width=1, batch=1, rounds=1)


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
        doing(f"compiling {name}")
        programs[name], seconds = compiled(f, *arguments, static_argnums=0)
        facts[name] = {"bytes": temporary_bytes(programs[name]), "compile": seconds}
    doing("measuring all in turn")
    calls = {name: functools.partial(f, *arguments[1:]) for name, f in programs.items()}
    return interleaved(calls, rounds), facts


AUTOMATIC = jax.value_and_grad(loss, argnums=1)


class Way(NamedTuple):
    """A way to compute the gradient; its plan, where it is this library's, and the room it has."""

    gradient: Callable
    plan: Any = None
    room: int | None = None


def ways_of(options: Options, network: Network, params: Any) -> tuple[Any, int, dict[str, Way]]:
    """The shape of the network, √depth, and by name all stored, every k-th, and so many bytes."""
    shape, root = shape_of(network, params, options.batch), round(options.depth**0.5)
    everything = every_plan(shape, 1)
    found = {
        "all stored": Way(backprop, everything),
        "jax.grad of the scan": Way(AUTOMATIC),
    }
    for k in sorted({root // 2, root, 3 * root}):
        found[f"every({k})"] = Way(by_hand(checkpoint.every(k)), every_plan(shape, k))
        found[f"jax.checkpoint, {k} layers"] = Way(by_hand(checkpoint.jax_segments(k)))
    rooms = [int(b) for b in np.geomspace(1.05 * least(shape).bytes, everything.bytes / 3, 5)]
    if (options.depth, options.width, options.batch) == (144, 256, 2048):
        rooms[1] = 16 * MIB
    for room in rooms:
        way = Way(by_hand(checkpoint.within(room)), best_plan(shape, room), room)
        found[f"within({room / MIB:.1f} MiB)"] = way
    return shape, root, found


def tabled(title: str, ways: dict[str, Way], facts: dict[str, dict]) -> Table:
    table = Table(title=title)
    heads = ("ms", "to all stored", "temporary MiB", "planned MiB", "evaluations", "compile s")
    for name in ("", *heads):
        table.add_column(name, justify="right" if name else "left")
    for name, way in ways.items():
        fact = facts[name]
        table.add_row(
            name,
            f"{fact['ms']:.0f}",
            f"{fact['to all stored']:.2f}",
            f"{fact['bytes'] / MIB:.1f}",
            f"{way.plan.bytes / MIB:.1f}" if way.plan else "",
            f"{way.plan.evaluations}" if way.plan else "",
            f"{fact['compile']:.2f}",
        )
    return table


def tradeoff(options: Options, console: Console) -> None:
    arguments = problem(options.depth, options.width, options.batch)
    shape, root, ways = ways_of(options, *arguments[:2])
    seconds, facts = measured(
        {name: way.gradient for name, way in ways.items()}, arguments, options.rounds
    )
    for name, way in ways.items():
        facts[name]["ms"] = 1e3 * float(np.median(seconds[name]))
        facts[name]["to all stored"] = ratio(seconds, name, "all stored")[0]
        if way.plan:
            facts[name] |= {"planned": way.plan.bytes, "evaluations": way.plan.evaluations}
        if way.room:
            facts[name]["room"] = way.room
    console.print(tabled(f"{shape}, {machine()}", ways, facts))
    if not options.quick:
        title = f"{options.depth} layers of {options.width}, batch {options.batch}"
        path = draw(title, shape, facts, options.write)
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
        doing(f"compiling {name} at 16 and at 1024 layers")
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


@told
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
