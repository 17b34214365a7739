"""A progress bar for what takes longer than five seconds, where `rich` is installed."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

PATIENCE = 5.0  # seconds


@contextlib.contextmanager
def progress(names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Call what it gives after each of the named parts; the bar goes to the standard error."""
    start, done, bar = time.perf_counter(), 0, None

    def step() -> None:
        nonlocal done, bar
        done += 1
        if bar is None and time.perf_counter() - start > PATIENCE:
            bar = _bar(len(names))
        if bar is not None:
            following = names[done] if done < len(names) else ""
            bar.update(bar.task_ids[0], completed=done, description=f"differences {following}")

    try:
        yield step
    finally:
        if bar is not None:
            bar.stop()


def _bar(total: int):
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        return None
    bar = Progress(console=Console(file=sys.stderr), transient=True)
    bar.add_task("differences", total=total)
    bar.start()
    return bar
