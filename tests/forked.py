"""A script in a process of its own, forked from one that has imported all of it.

Imports take most of a short run's time. The process that it is forked from has not started JAX, and
it ends as one that a user starts: its own hook tells of an error, and what is registered for the
end of a program is called.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

HERE = pathlib.Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
BOUND = 120  # seconds: longer than any of these takes on a busy machine, and not for ever


class Running(NamedTuple):
    """A process, and the file that it writes to."""

    process: multiprocessing.Process
    log: pathlib.Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, word: str) -> None:
        """Wait for it to say so."""
        end = time.monotonic() + BOUND
        while word not in self.said:
            assert self.process.is_alive(), self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def receive(self, signal: int) -> None:
        os.kill(self.process.pid, signal)


def start(
    log: pathlib.Path, script: pathlib.Path, *options: object, first: Callable | None = None
) -> Running:
    """Begin `python SCRIPT OPTIONS`; what is to be done first may plant a fault."""
    log.write_text("")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["train", "sklearn.datasets", "matplotlib.pyplot"])
    process = forks.Process(target=_run, args=(log, [str(script), *map(str, options)], first))
    with pytest.MonkeyPatch.context() as patch:  # the process to fork from reads it as it starts
        own = str(HERE), str(HERE.parent), str(SCRIPTS)
        patch.setenv("PYTHONPATH", os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")]))
        process.start()
    return Running(process, log)


def end(*running: Running, within: float = BOUND) -> list[tuple[int | None, str]]:
    """(status, output) of each; none outlives the call."""
    try:
        for each in running:
            each.process.join(within)
        return [(each.process.exitcode, each.said) for each in running]
    finally:
        for each in running:
            each.process.kill()


def _run(log: pathlib.Path, command: list[str], first: Callable | None) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv, sys.path = command, [str(pathlib.Path(command[0]).parent), *sys.path]
    if first is not None:
        first()
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends without them
