"""What a campaign returns, and how one is shown able to fail."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Report(NamedTuple):
    """The trials that failed; figures in words; "caught", where the planted fault was."""

    failures: list[str]
    figures: str
    control: str


@contextlib.contextmanager
def planted(module: Any, **faults: Any) -> Iterator[None]:
    """The module with attributes replaced by faulty ones, for a while."""
    sound = {name: getattr(module, name) for name in faults}
    try:
        for name, fault in faults.items():
            setattr(module, name, fault)
        yield
    finally:
        for name, own in sound.items():
            setattr(module, name, own)


def control(failures: Callable[[], list[str]]) -> str:
    return "caught" if failures() else "a planted fault went unnoticed"
