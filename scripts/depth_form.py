"""Which form pays for deep networks: equal layers in a stack that is scanned, or one by one.

    python scripts/depth_form.py                    all depths and widths: five minutes
    python scripts/depth_form.py --depths 16 64     some of them: half a minute

Adam by `train.run`. A program of layers one by one takes longer to compile and less to run: a table
of both, and of what 10, 1,000 and 100,000 steps take, compilation included. Left out is what would
take more than a minute to compile, or has more weights than --largest.
"""

import dataclasses
import time
from typing import Any

import command  # noqa: F401
import jax
import numpy as np
import optax
import tyro
from parts.arguments import check
from parts.measure import interleaved, machine, temporary_bytes
from parts.progress import told
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, init, stack, train, unstack

STEPS = (10, 1_000, 100_000)
IN_A_RUN = 4
FORMS = {"stack": stack, "one by one": unstack}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    depths: tuple[int, ...] = (16, 64, 256, 1024)
    """Equal hidden layers."""
    widths: tuple[int, ...] = (32, 128, 512, 1024)
    """Units of each."""
    batch: int = 64
    """Examples in a step."""
    rounds: int = 7
    """Turns of each form."""
    patience: float = 60.0
    """Seconds that a program may be expected to take to compile."""
    largest: int = 2**26
    """Weights of a network."""

    def __post_init__(self) -> None:
        check(self, depths=1, widths=1, batch=1, rounds=1, patience=0, largest=1)


class Running:
    """A compiled run, its state, and what it took to compile."""

    def __init__(self, form: str, network: Network, batch: int) -> None:
        optimizer, key = optax.adam(1e-4), jax.random.key(0)
        params = FORMS[form](init(network, key))
        self.state = train.State(params, optimizer.init(params), np.int32(0), key)
        width = network.sizes[0]
        self.data = jax.random.normal(key, (2, batch * IN_A_RUN, width))
        begun = time.perf_counter()
        self.program = train.run.lower(
            *(network, optimizer, self.state, *self.data), batch=batch, steps=IN_A_RUN
        ).compile()
        self.compile_seconds = time.perf_counter() - begun

    def __call__(self) -> Any:
        self.state, metrics = self.program(self.state, *self.data)
        return metrics


def measured(depth: int, width: int, forms: list[str], options: Options) -> dict[str, dict]:
    """Of each form: seconds to compile, those of a step, and temporary bytes."""
    network = Network((width,) * (depth + 2), "tanh", "identity")
    runs = {form: Running(form, network, options.batch) for form in forms}
    seconds = interleaved(runs, options.rounds)
    return {
        form: {
            "compile": run.compile_seconds,
            "step": float(np.median(seconds[form])) / IN_A_RUN,
            "bytes": temporary_bytes(run.program),
        }
        for form, run in runs.items()
    }


def row(depth: int, width: int, form: str, found: dict) -> list[str]:
    whole = [f"{found['compile'] + steps * found['step']:,.1f}" for steps in STEPS]
    own = [f"{found['compile']:.2f}", f"{1e3 * found['step']:.3g}", f"{found['bytes'] / 2**20:.1f}"]
    return [str(depth), str(width), form, *own, *whole]


@told
def main(options: Options) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console(highlight=False, width=110)
    table = Table(title=f"batch {options.batch}, Adam; {machine()}")
    whole = [f"{steps:,} steps, s" for steps in STEPS]
    for name in ("layers", "width", "form", "compile s", "step ms", "MiB", *whole):
        table.add_column(name, justify="left" if name == "form" else "right")
    for width in options.widths:
        each = 0.0  # seconds a layer to compile them one by one
        for depth in options.depths:
            if depth * width**2 > options.largest:
                console.print(f"{depth} × {width}: left out, more weights than --largest")
                continue
            expected = each * depth
            forms = list(FORMS) if expected <= options.patience else ["stack"]
            if forms != list(FORMS):
                console.print(f"{depth} × {width}: one by one left out, {expected:.0f} s expected")
            doing(f"{depth} × {width}")
            found = measured(depth, width, forms, options)
            if "one by one" in found:
                each = found["one by one"]["compile"] / depth
            for form, facts in found.items():
                table.add_row(*row(depth, width, form, facts))
            console.print(f"{depth} × {width}: {found}")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
