"""A progress bar for what takes longer than five seconds, where `rich` is installed."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

PATIENCE = 5.0  # seconds
SHOWN = threading.Lock()  # one bar at a time: a check inside a check has none of its own


@contextlib.contextmanager
def progress(names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Call what it gives after each of the named parts; the bar goes to the standard error."""
    if not SHOWN.acquire(blocking=False):
        yield lambda: None
        return
    done, bar = 0, None

    def show() -> None:
        nonlocal bar
        bar = _bar(len(names))
        tell()

    def tell() -> None:
        if bar is not None:
            now = names[done] if done < len(names) else ""
            bar.update(bar.task_ids[0], completed=done, description=f"checking {now}")

    def step() -> None:
        nonlocal done
        done += 1
        tell()

    patience = threading.Timer(PATIENCE, show)
    patience.daemon = True
    patience.start()
    try:
        yield step
    finally:
        patience.cancel()
        patience.join()
        if bar is not None:
            bar.stop()
        SHOWN.release()


def _bar(total: int):
    try:
        from rich.console import Console
        from rich.errors import LiveError
        from rich.progress import Progress
    except ModuleNotFoundError:
        return None
    bar = Progress(console=Console(file=sys.stderr), transient=True)
    bar.add_task("checking", total=total)
    try:
        bar.start()
    except LiveError:  # the caller shows something else
        return None
    return bar
