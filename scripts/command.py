"""How the scripts end when they cannot go on: in one sentence, told on stderr, with status 1.

Each of them imports this module before any library that an extra brings.
"""

import sys
import time
from pathlib import Path
from types import TracebackType

STARTED = time.monotonic()  # before the imports, which take seconds
EXTRAS = {
    "scripts": ("tyro", "rich", "optax", "orbax", "matplotlib", "sklearn", "psutil", "pygraphviz"),
    "benchmark": ("flax", "equinox", "torch"),
}


def sentence(error: BaseException) -> str | None:
    """What to tell of an error that the user can do something about; None of any other."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                return f'{package} is not installed: pip install "jaxbackprop[{extra}]"'
        return None
    return str(error) if isinstance(error, ValueError | OSError) else None


def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of sys.excepthook."""
    known = sentence(error)
    if known is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"{Path(sys.argv[0]).name}: {known}", file=sys.stderr)


sys.excepthook = told
