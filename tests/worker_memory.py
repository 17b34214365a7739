"""A worker of the suite stays within its memory: a plugin, which sees tests and pages alike.

(The hooks of a conftest.py are asked about the items of its own folder only.)
"""

import ctypes
import gc
import pathlib
import re
import sys

import jax
import psutil
import pytest

MIB = 2**20
FULL = 1000 * MIB  # of a worker: compiled programs are let go
MOST = 1536 * MIB  # what none may take, at any time of an item
LINUX = sys.platform == "linux"


def let_go_if_full() -> None:
    """Of compiled programs: after each item, and within one that compiles many."""
    if held() > FULL:
        jax.clear_caches()
        gc.collect()
        if LINUX:
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def held() -> int:
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most that was held since `forget_peak`; elsewhere than on Linux what is held now."""
    if not LINUX:
        return held()
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024


def forget_peak() -> None:
    if LINUX:
        pathlib.Path("/proc/self/clear_refs").write_text("5")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    forget_peak()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """An item that took too much on its way fails; compiled programs are let go in time."""
    yield
    taken = peak()
    let_go_if_full()
    assert taken < MOST, f"a worker of the suite took {taken / MIB:.0f} MiB"
