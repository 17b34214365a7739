"""A worker of the suite that takes more than its share fails, though it has given it back."""

import worker_memory
from worker_memory import MIB

pytest_plugins = "pytester"

ITEMS = """
import numpy as np

def test_much():
    np.ones(2**26, "u1").sum()

def test_little():
    np.ones(2**20, "u1").sum()
"""


def test_an_item_that_takes_too_much_fails_and_the_next_one_does_not(pytester, monkeypatch):
    monkeypatch.setattr(worker_memory, "MOST", worker_memory.held() + 48 * MIB)
    pytester.makepyfile(ITEMS)
    done = pytester.runpytest_inprocess("-p", "worker_memory", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=2, errors=1)
    done.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_much*", "*a worker of the suite took * MiB"]
    )


def test_compiled_programs_are_let_go_where_a_worker_is_full(monkeypatch):
    let_go = []
    monkeypatch.setattr(worker_memory.jax, "clear_caches", lambda: let_go.append(True))
    worker_memory.let_go_if_full()
    before = len(let_go)
    monkeypatch.setattr(worker_memory, "FULL", 0)
    worker_memory.let_go_if_full()
    assert len(let_go) == before + 1
