"""The memory of a process that computes a gradient, and the pages a call is handed out."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[1]


def peak_memory(peer: str, work: str) -> float | None:
    """Resident MiB of a process of its own that computes the gradient."""
    program = f"import peers; peers.print_peak_memory({peer!r}, {work!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def page_faults(call: Callable, calls: int = 5) -> int:
    """Pages a call, in the median, that the system has to hand out: memory given back and asked for
    anew."""
    seen = []
    for _ in range(calls):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return int(np.median(seen))
