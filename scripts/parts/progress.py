"""What a script is doing, told on stderr every five seconds from the fifth on.

In lines, without a moving display: that would take time from what is being measured.
"""

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import command

PAUSE = 5.0  # seconds
P, R = ParamSpec("P"), TypeVar("R")
_now = "starting"


def doing(what: str) -> None:
    """From now on this is what is being done."""
    global _now
    _now = what


def told(main: Callable[P, R]) -> Callable[P, R]:
    """main, telling what it does as long as it lasts."""

    @functools.wraps(main)
    def telling(*args: P.args, **kwargs: P.kwargs) -> R:
        over, began = threading.Event(), command.STARTED

        def tell() -> None:
            pause = max(0.0, PAUSE - (time.monotonic() - began))
            while not over.wait(pause):
                pause = PAUSE
                print(f"  {time.monotonic() - began:.0f} s: {_now}", file=sys.stderr, flush=True)

        threading.Thread(target=tell, daemon=True).start()
        try:
            return main(*args, **kwargs)
        finally:
            over.set()

    return telling
