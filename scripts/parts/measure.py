"""How the scripts measure: competitors take turns in one process, and are compared round by round.

Absolute times depend on the machine and the moment; the ratio of two times of one round does so
far less. Memory is what the compiled program says it needs, not what a process seemed to use.
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def machine() -> str:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0))
    backend = jax.default_backend()
    device = f"{cores} CPU cores" if backend == "cpu" else jax.devices()[0].device_kind
    return (
        f"{time.strftime('%Y-%m-%d')}, {device}, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call in each round, A B C A B C …, after one round that does not count."""
    seconds = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: np.array(times) for name, times in seconds.items()}


def ratio(seconds: dict[str, np.ndarray], name: str, to: str) -> tuple[float, float, float]:
    """The median of the per-round ratios name / to, and their quartiles."""
    ratios = seconds[name] / seconds[to]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def compiled(f: Callable, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """f as a program for these arguments, and the seconds that tracing and compiling took."""
    begin = time.perf_counter()
    program = jax.jit(f, **options).lower(*arguments).compile()
    return program, time.perf_counter() - begin


def temporary_bytes(program: Any) -> int:
    """What a compiled program needs besides its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def verdict(measured: float, bar: float) -> str:
    return "holds" if measured <= bar else "does NOT hold"
