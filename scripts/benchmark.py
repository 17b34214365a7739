"""The library beside what people would use instead, on the machine at hand.

    python scripts/benchmark.py --quick                     two minutes: small works, few rounds
    python scripts/benchmark.py                             everything, 20 minutes on two cores
    python scripts/benchmark.py --works 784,128,10 --no-scaling
    python scripts/benchmark.py --platform gpu              on a card, without the class in NumPy
    python scripts/benchmark.py --write docs                and docs/benchmark.{json,png},
                                                            the tables of docs/performance.md

All peers live in one process and run in turn, in a new order each round; a ratio is the median of
the rounds' own ratios, with its quartiles. One gradient, then an epoch with SGD and with Adam.
`products` are the matrix products of the same gradients alone, in a jitted loop: the peak that XLA
reaches on this machine for these shapes; `torch products` is PyTorch's. `forward` is the cost
without its gradient. `the other form` is the library with its layers stacked where `init` leaves
them one by one, and the reverse from 100 equal layers on.
"""

import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import peers
import tyro
from benchmark_parts.memory import page_faults, peak_memory
from benchmark_parts.platforms import choose
from benchmark_parts.report import report
from parts.arguments import check
from parts.progress import doing, told
from peers import PEERS, WORKS, Work
from rich.console import Console

from jaxbackprop import loss

QUICK = ("784,128,10", "64 layers")
LEAST, PAUSE = 0.1, 0.1  # seconds
SCALING = {
    "width": [64, 128, 256, 512, 1024, 2048],
    "depth": [16, 32, 64, 128, 256, 512],
    "batch": [64, 128, 256, 512, 1024, 2048],
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to leave it."""

    works: tuple[Literal[tuple(WORKS)], ...] = tuple(WORKS)
    """Which networks."""
    peers: tuple[Literal[tuple(PEERS)], ...] = tuple(PEERS)
    """Which peers; those whose package is not installed are left out."""
    quick: bool = False
    """Two networks, fewer rounds, without torch.compile, peak memory and scaling curves."""
    rounds: int = 21
    """Rounds of one gradient and of an epoch; a scaling curve has a third of them."""
    scaling: bool = True
    """Measure the scaling curves as well."""
    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """What to run on: what jax finds, if not told."""
    tf32: bool = False
    """On a GPU: products in TF32, PyTorch's as well."""
    write: Path | None = None
    """A folder for benchmark.json, benchmark.png and, where it is there, performance.md."""

    def __post_init__(self) -> None:
        check(self, rounds=3)
        if "jaxbackprop" not in self.peers:
            raise ValueError("--peers needs jaxbackprop, which the ratios are to")


def interleave(calls: dict[str, Callable], rounds: int) -> dict[str, list]:
    """Seconds of each call in each round; short calls are repeated to last `LEAST` seconds.

    The threads of OpenMP and of OpenBLAS wait busily for more work and would take the processor
    from whoever runs next: before each call there is a pause in which they fall asleep.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        repeats[name] = max(1, round(LEAST / (time.perf_counter() - begin)))
    times, random = {name: [] for name in calls}, np.random.default_rng(0)
    for _ in range(rounds):
        for name in random.permutation(list(calls)):
            time.sleep(PAUSE)
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return times


def summary(times: dict[str, list]) -> dict[str, dict]:
    """Median seconds; the rounds' ratios of the library to each peer; the share of the products."""
    own, best = np.array(times["jaxbackprop"]), np.array(times["products"])
    rows = {}
    for name, seconds in times.items():
        low, middle, high = np.quantile(own / np.array(seconds), (0.25, 0.5, 0.75))
        rows[name] = {"seconds": float(np.median(seconds))}
        rows[name] |= {"ratio": float(middle), "quartiles": [float(low), float(high)]}
        rows[name] |= {"of_products": float(np.median(best / np.array(seconds)))}
    return rows


def products(work: Work, steps: int) -> Callable:
    """The products of `steps` gradients alone: W a, Wᵀ δ and δ aᵀ, in a jitted loop."""
    keys = jax.random.split(jax.random.key(0), len(work.sizes))
    pairs = zip(keys[1:], work.sizes[:-1], work.sizes[1:], strict=True)
    weights = [jax.random.normal(key, (n, p)) / p**0.5 for key, p, n in pairs]
    xs = jax.random.normal(keys[0], (min(steps, 16), work.sizes[0], work.batch))

    @jax.jit
    def loop(weights, xs):
        def step(i, _):
            kept = [xs[i % len(xs)]]
            for W in weights:
                kept.append(W @ kept[-1])
            delta, found = kept[-1], []
            for W, a in zip(reversed(weights), reversed(kept[:-1]), strict=True):
                found.append(delta @ a.T)
                delta = W.T @ delta
            return found[::-1]

        return jax.lax.fori_loop(0, steps, step, weights)

    return lambda: jax.block_until_ready(loop(weights, xs))


def alone(work: Work, steps: int, weights: peers.Weights, X: np.ndarray) -> dict[str, Callable]:
    """The products of `steps` gradients alone, in XLA and, where it is installed, in PyTorch."""
    calls = {"products": products(work, steps)}
    if peers.installed(["torch eager"]):
        calls["torch products"] = peers.torch_products(work, weights, X)
    return calls


def agree(gradients: dict[str, peers.Weights], within: float = 1e-3) -> None:
    """Exit unless all peers computed one gradient: a table of different work says nothing."""
    own = gradients["jaxbackprop"]
    for name, found in gradients.items():
        for l, (ours, theirs) in enumerate(zip(own, found, strict=True), start=1):
            for a, b in zip(ours, theirs, strict=True):
                if not np.linalg.norm(a - b) <= within * np.linalg.norm(a):
                    sys.exit(f"{name} has another gradient than jaxbackprop in layer {l}")


def one_gradient(work: Work, names: list[str], rounds: int, options: Options) -> dict:
    """A row for each peer: time, ratio, memory and compile time of one gradient."""
    weights, X, Y = peers.material(work, work.batch)
    runs = {name: PEERS[name][1](work, weights, X, Y) for name in names}
    found = {name: run.read(run.call()) for name, run in runs.items()}
    agree(found, within=5e-2 if options.tf32 else 1e-3)
    args = (peers.as_params(weights), jnp.asarray(X.T), jnp.asarray(Y.T))
    forward = peers.compiled(lambda *args: loss(work.network, *args), args, list)
    calls = {name: run.call for name, run in runs.items()}
    calls |= {"forward": forward.call} | alone(work, 1, weights, X)
    rows = summary(interleave(calls, rounds))
    for name, run in runs.items():
        rows[name]["compile_seconds"] = run.compile_seconds
        rows[name]["temporary_bytes"] = run.temporary_bytes
        rows[name]["page_faults"] = page_faults(run.call)
        if not options.quick and jax.default_backend() == "cpu":
            rows[name]["peak_mib"] = peak_memory(name, work.name)
    return rows


def one_epoch(work: Work, names: list[str], rule: str, rounds: int) -> dict:
    """A row for each peer that has the rule: time and ratio of an epoch of training."""
    material = peers.material(work, work.steps * work.batch)
    runs = {name: PEERS[name][2](work, *material, rule) for name in names}
    calls = {name: run.call for name, run in runs.items() if run is not None}
    calls |= alone(work, work.steps, *material[:2])
    return summary(interleave(calls, rounds))


def deep_compile(work: Work, names: list[str]) -> list[str]:
    """torch.compile unrolls: beyond the wide networks it takes minutes a layer count, left out."""
    return [name for name in names if name != "torch.compile" or len(work.sizes) < 16]


def scaling(rounds: int) -> dict:
    """Seconds and temporary bytes of the library and jax.grad against width, depth and batch."""
    curves = {}
    for axis, values in SCALING.items():
        doing(f"how the cost grows with {axis}")
        rows = {name: {"seconds": [], "bytes": []} for name in ("jaxbackprop", "jax.grad")}
        flops, activations = [], []
        for value in values:
            at = {"width": 256, "depth": 4, "batch": 256} | {axis: value}
            if axis == "depth":
                at |= {"width": 128, "batch": 64}
            sizes = (at["width"],) * (at["depth"] + 1)
            work = Work("", sizes, "tanh", at["batch"], 1)
            flops.append(work.flops)
            activations.append(4 * at["width"] * at["depth"] * at["batch"])
            material = peers.material(work, work.batch)
            runs = {name: PEERS[name][1](work, *material) for name in rows}
            times = interleave({name: run.call for name, run in runs.items()}, rounds)
            for name, row in rows.items():
                row["seconds"].append(float(np.median(times[name])))
                row["bytes"].append(runs[name].temporary_bytes)
        curves[axis] = {"values": values, "flops": flops, "activations": activations} | rows
    return curves


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    device, named = jax.devices()[0], jax.default_backend()
    if named != "cpu":
        named = f"{device.device_kind} ({device.client.platform_version.splitlines()[-1]})"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        flags = next((line for line in lines if line.startswith("flags")), "")
        cpu = (names or [cpu])[0] + (", AVX-512" if "avx512f" in flags else "")
    packages = ["jax", "jaxlib", "numpy", "optax", "flax", "equinox", "torch"]
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {named}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(versions),
        "threads": f"as each library chooses; load {os.getloadavg()[0]:.1f} at the start",
    }


def measure(options: Options, works: list[Work], console: Console) -> dict:
    """Everything, as one dictionary that becomes the JSON."""
    result = {"head": machine(), "works": {}}
    names = peers.installed(options.peers)
    absent = [name for name in options.peers if name not in names]
    if options.quick:
        names = [name for name in names if name != "torch.compile"]
    result["head"]["absent"] = ", ".join(absent)
    rounds = min(options.rounds, 5) if options.quick else options.rounds
    for work in works:
        doing(f"{work.name}: one gradient")
        begin, own = time.perf_counter(), deep_compile(work, names)
        found = {"flops": work.flops, "steps": work.steps, "batch": work.batch}
        found |= {"sizes": work.sizes, "forward_flops": work.forward_flops}
        found["gradient"] = one_gradient(work, own, rounds, options)
        for rule in ("sgd", "adam"):
            doing(f"{work.name}: an epoch, {rule}")
            found[rule] = one_epoch(work, own, rule, rounds)
        result["works"][work.name] = found
        console.print(f"[dim]{work.name}: {time.perf_counter() - begin:.0f} s[/]")
    if options.scaling and not options.quick:
        result["scaling"] = scaling(max(3, rounds // 3))
    return result


@told
def main(options: Options) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if choose(options.platform, options.tf32) != "cpu":
        names = tuple(name for name in options.peers if name != "NumPy class")
        options = dataclasses.replace(options, peers=names)
    works = [WORKS[name] for name in options.works if not options.quick or name in QUICK]
    report(measure(options, works, console), console, options.write)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
