"""A worker of the suite stays within its memory: a plugin, which sees tests and pages alike.

(The hooks of a conftest.py are asked about the items of its own folder only.)
"""

import ctypes
import gc
import sys

import jax
import psutil
import pytest

MIB = 2**20
FULL = 1000 * MIB  # of a worker: compiled programs are let go
MOST = 1536 * MIB  # what none may hold after that


def let_go_if_full() -> None:
    """Of compiled programs: after each item, and within one that compiles many."""
    if _held() > FULL:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _held() -> int:
    return psutil.Process().memory_info().rss


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Compiled programs are let go in time; an item after which too much is held all the same
    fails. (What one takes on its way is not seen.)"""
    yield
    let_go_if_full()
    held = _held()
    assert held < MOST, f"a worker of the suite holds {held / MIB:.0f} MiB"
