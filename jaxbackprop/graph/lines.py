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


class Expression(NamedTuple):
    """The part of the user's code that an operation is computed by, to the column.

    Lines count from 1, columns from 0, in bytes of UTF-8, as Python's own positions do.
    """

    file: str
    first: int
    start: int
    last: int
    end: int

    @property
    def text(self) -> str:
        lines = [line.encode() for line in self._lines()]
        lines[-1] = lines[-1][: self.end]
        lines[0] = lines[0][self.start :]
        return b"".join(lines).decode()

    def replaced(self, text: str) -> str:
        """The lines that it stands on, with this text in its place."""
        lines = [line.encode() for line in self._lines()]
        before, after = lines[0][: self.start], lines[-1][self.end :]
        return (before + text.encode() + after).decode().rstrip()

    def _lines(self) -> list[str]:
        return [linecache.getline(self.file, n) for n in range(self.first, self.last + 1)]


def expression(equations: Sequence[Any]) -> Expression | None:
    """The innermost expression of the user's code that nested equations come from, given from the
    outermost to the innermost; None where Python or jax does not say."""
    for equation in reversed(equations):
        traceback = equation.source_info.traceback
        locate = getattr(type(traceback), "code_addr2location", None)
        if traceback is None or locate is None:
            continue
        for code, instruction in zip(*traceback.raw_frames(), strict=True):
            if Line(code.co_filename, 0, code.co_name).is_users and _is_model(code.co_filename):
                first, start, last, end = locate(code, instruction)
                known = last >= first > 0 and linecache.getline(code.co_filename, last)
                return Expression(code.co_filename, first, start, last, end) if known else None
    return None


def _is_model(file: str) -> bool:
    """Not of jax or of this folder, wherever they are installed."""
    return not any(folder in file for folder in (f"{os.sep}jax{os.sep}_src{os.sep}", HERE))


def stack(equations: Sequence[Any]) -> tuple[Line, ...]:
    """The frames of nested equations, innermost first, JAX's own left out.

    A traceback reaches only to the graph that an equation is in: the call of a jitted function is
    the equation around it. `equations` are given from the outermost to the innermost.
    """
    return tuple(
        line for equation in reversed(equations) for line in frames(equation.source_info.traceback)
    )


def frames(traceback: Any) -> list[Line]:
    """The frames of one traceback, innermost first, JAX's own left out."""
    return [
        Line(frame.file_name, frame.line_num, frame.function_name)
        for frame in (traceback.frames if traceback else ())
        if _is_model(frame.file_name)
    ]


def innermost(lines: Sequence[Line]) -> Line | None:
    """The innermost line of the user's code; of any code, where none is the user's."""
    users = [line for line in lines if line.is_users]
    return next(iter(users or lines), None)


def where(equations: Sequence[Any]) -> str:
    """file:line of the innermost line of the user's code, for an error message."""
    return str(innermost(stack(equations)) or "source unknown")
