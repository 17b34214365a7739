"""The lines of the user's code that an equation comes from, through every graph around it."""

import linecache
import os
import sysconfig
from collections.abc import Sequence
from typing import Any, NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Installed packages, the standard library and this folder are nobody's model.
LIBRARIES = (
    HERE,
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")),
)


class Line(NamedTuple):
    """A line of code, and the function that it is in."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.number}"

    @property
    def text(self) -> str:
        """The line itself, where the file can be read."""
        return linecache.getline(self.file, self.number).strip()

    @property
    def is_users(self) -> bool:
        """Not of an installed package, the standard library or a code generator."""
        generated = self.file.startswith("<") and ("frozen" in self.file or "@" in self.file)
        packaged = f"{os.sep}site-packages{os.sep}" in self.file
        return not (generated or packaged or self.file.startswith(LIBRARIES))


def stack(equations: Sequence[Any]) -> tuple[Line, ...]:
    """The frames of nested equations, innermost first, JAX's own left out.

    A traceback reaches only to the graph that an equation is in: the call of a jitted function is
    the equation around it. `equations` are given from the outermost to the innermost.
    """
    found = []
    for equation in reversed(equations):
        traceback = equation.source_info.traceback
        found += [
            Line(frame.file_name, frame.line_num, frame.function_name)
            for frame in (traceback.frames if traceback else ())
        ]
    own = f"{os.sep}jax{os.sep}_src{os.sep}", HERE
    return tuple(line for line in found if not any(folder in line.file for folder in own))


def innermost(lines: Sequence[Line]) -> Line | None:
    """The innermost line of the user's code; of any code, where none is the user's."""
    users = [line for line in lines if line.is_users]
    return next(iter(users or lines), None)


def where(equations: Sequence[Any]) -> str:
    """file:line of the innermost line of the user's code, for an error message."""
    return str(innermost(stack(equations)) or "source unknown")
