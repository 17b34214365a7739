"""A worker of the suite stays within its memory: a plugin, which sees tests and pages alike.

(The hooks of a conftest.py are asked about the items of its own folder only.)
"""

import ctypes
import gc
import resource
import sys

import jax
import psutil
import pytest

MIB = 2**20
FULL = 1000 * MIB  # of a worker: compiled programs are let go
MOST = 1536 * MIB  # what none may ever have taken
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss

_peaks = [0]  # after each item


def let_go_if_full() -> None:
    """Of compiled programs: after each item, and within one that compiles many."""
    if psutil.Process().memory_info().rss > FULL:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Compiled programs are let go in time; the item that took the peak beyond its bound fails."""
    yield
    let_go_if_full()
    _peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT)
    before, now = _peaks[-2:]
    assert not before < MOST <= now, f"a worker of the suite has come to {now / MIB:.0f} MiB"
