"""A script run in this process, as `python scripts/NAME OPTIONS` would run it in one of its own.

What its process would take with it is put back: the arguments, the search path, the handlers of
signals and of errors, jax's precision. Its imports and compiled programs stay, and are most of a
short run. The shapes of annotations are not checked, as they are not for users.
"""

import contextlib
import io
import pathlib
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator

import jax
import jaxtyping

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


def run(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    """The exit status, and what the script wrote."""
    command, out, err = [str(SCRIPTS / script), *map(str, options)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _own_state(command):
        try:
            runpy.run_path(command[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            said = end.code is not None and not isinstance(end.code, int)
            status = 1 if said else end.code or 0
            print(end.code if said else "", file=sys.stderr)
        except Exception as error:
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_state(command: list[str]) -> Iterator[None]:
    argv, path, wide = sys.argv, sys.path, jax.config.read("jax_enable_x64")
    hook = sys.excepthook
    for name in ("command", "parts.progress"):  # each script sets its own, and its own clock
        sys.modules.pop(name, None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv, sys.path = command, [str(SCRIPTS), *path]
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        sys.argv, sys.path, sys.excepthook = argv, path, hook
        jax.config.update("jax_enable_x64", wide)
        for number, handler in handlers.items():
            signal.signal(number, handler)
