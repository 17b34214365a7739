"""Inspections as text and HTML. Reads what the other modules found, and computes nothing."""

import html as markup
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection.statistics import real

ROWS = 60  # a terminal's few screens; the filters show the rest
HEADER = ("#", "operation", "line", "name", "shape", "value", "min", "max", "gradient", "0s")
HEADER += ("NaN, Inf",)
REACHES = 4  # are named; the rest is counted
WIDTH = 100  # of a line of the table
LEFT = (1, 2, 3, 4, 10)  # these columns are words, the others numbers
WORDS = (1, 2, 3)  # and these are cut where the line would be too long
DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "bool": "bool"}


def number(x: Any) -> str:
    return f"{float(x):.3g}"


def is_number(array: Any) -> bool:
    """A single one, and not a random key."""
    return np.size(array) == 1 and not jnp.issubdtype(jnp.result_type(array), jax.dtypes.extended)


def size_of(array: Any) -> str:
    """A single number as it is, an array by its norm."""
    if array is None:
        return "·"
    entries = real(array)
    if entries.size == 1:
        return number(entries.item())
    with np.errstate(all="ignore"):
        return f"‖{number(np.linalg.norm(entries.ravel()))}‖"


def shape(record: Any) -> str:
    """float32[64,128] as f32[64,128]; with ×20 where it is in 20 steps of a scan."""
    kind = record.dtype.rstrip("0123456789")
    short = DTYPES.get(kind, kind) + record.dtype[len(kind) :]
    steps = "" if record.steps is None else f" ×{record.steps}"
    return f"{short}[{','.join(map(str, record.shape))}]{steps}"


def bad(record: Any) -> str:
    """How many numbers are not finite, in the value and in the gradient."""
    pairs = ("value", record.value_statistics), ("grad", record.gradient_statistics)
    return " ".join(
        f"{name} {found.nonfinite}" for name, found in pairs if found and found.nonfinite
    )


def name(record: Any) -> str:
    """The scope of an operation, else the parameter that it reads; an argument is its own name."""
    return next(iter(record.names), "") if record.occurrences else ""


def row(record: Any) -> tuple[str, ...]:
    value, gradient = record.value_statistics, record.gradient_statistics
    return (
        str(record.number),
        record.operation,
        str(record.line or ""),
        name(record),
        shape(record),
        size_of(record.value),
        number(value.min) if value and value.size > 1 else "",
        number(value.max) if value and value.size > 1 else "",
        size_of(record.gradient) if record.unknown is None else "unknown",
        f"{gradient.zeros:.0%}" if gradient and gradient.size > 1 else "",
        bad(record),
    )


def paths(record: Any) -> list[tuple[str, ...]]:
    """The ways that a value's gradient comes back by, where there are several."""
    if len(record.paths) < 2:
        return []
    found = []
    for path in record.paths:
        through = path.operation if path.through is None else f"{path.operation} #{path.through}"
        found.append(("", f"  by {through}", *[""] * 6, f"+ {size_of(path.gradient)}", "", ""))
    return found


def rows(records: Sequence[Any]) -> list[tuple[str, ...]]:
    return [line for record in records for line in (row(record), *paths(record))]


def summary(inspection: Any) -> str:
    files = len({record.line.file for record in inspection.records if record.line})
    shown, total = len(inspection.shown), len(inspection.records)
    of = f"{total}" if shown == total else f"{shown} of {total}"
    where = "1 file" if files == 1 else f"{files} files"
    return f"{of} values on the lines of {where}, result {number(inspection.value)}"


def footer(inspection: Any) -> list[str]:
    notes = []
    hidden = len(inspection.shown) - ROWS
    if hidden > 0:
        notes.append(
            f"… {hidden} more: see .lines(file), .named(scope), .largest(n), .vanishing(x)"
        )
    behind = dict.fromkeys(r.unknown for r in inspection.records if r.unknown is not None)
    notes += [f"gradients are {unknown}" for unknown in behind]
    if any(bad(record) for record in inspection.records):
        found = inspection.origin()
        if found is not None:
            notes.append(f"origin of NaN, Inf: {headline(found)}")
    return notes


def table(inspection: Any) -> str:
    """A table of at most 100 columns, with the ways back below each value that has several."""
    lines = [HEADER, *rows(inspection.shown[:ROWS])]
    filled = [i for i in range(len(HEADER)) if i < 3 or any(line[i] for line in lines[1:])]
    widths = _widths(lines, filled)
    text = [_aligned(line, filled, widths) for line in lines]
    rule = "─" * max(map(len, text))
    return "\n".join([summary(inspection), text[0], rule, *text[1:], *footer(inspection)])


def _aligned(line: tuple[str, ...], filled: Sequence[int], widths: dict[int, int]) -> str:
    """An argument has no line: its name may reach to where the numbers begin."""
    span = [i for i in WORDS if i in filled] if _is_arguments(line) else [1]
    room = sum(widths[i] for i in span) + len(span) - 1
    cells = [line[0].rjust(widths[0]), _short(line[1], room).ljust(room)]
    for i in filled:
        if i not in (0, *span):
            cell = _short(line[i], widths[i])
            cells.append(cell.ljust(widths[i]) if i in LEFT else cell.rjust(widths[i]))
    return " ".join(cells).rstrip()


def _is_arguments(line: tuple[str, ...]) -> bool:
    return bool(line[0]) and not any(line[i] for i in WORDS[1:])


def _widths(lines: Sequence[tuple[str, ...]], filled: Sequence[int]) -> dict[int, int]:
    """As wide as the longest cell; then the widest words are cut until the line fits."""
    apart = [line for line in lines if not _is_arguments(line)]
    widths = {i: max(len(line[i]) for line in (apart if i == 1 else lines)) for i in filled}
    words = [i for i in WORDS if i in filled]
    names = [len(line[1]) for line in lines if _is_arguments(line)]
    widths[words[-1]] += max(0, max(names, default=0) - sum(widths[i] + 1 for i in words) + 1)
    for _ in range(sum(widths.values()) + len(filled) - 1 - WIDTH):
        widths[max(words, key=widths.__getitem__)] -= 1
    return widths


def html(inspection: Any) -> str:
    """The same table for a notebook; rows with NaN or Inf are red."""

    def line(cells: Sequence[str], tag: str, colour: str = "inherit") -> str:
        inner = "".join(
            f'<{tag} style="text-align:{"left" if i in LEFT else "right"};white-space:pre">'
            f"{markup.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f'<tr style="color:{colour}">{inner}</tr>'

    body = []
    for record in inspection.shown[:ROWS]:
        body.append(line(row(record), "td", "#c00" if bad(record) else "inherit"))
        body += [line(path, "td", "#777") for path in paths(record)]
    notes = "".join(f"<p>{markup.escape(note)}</p>" for note in footer(inspection))
    return (
        f"<p>{markup.escape(summary(inspection))}</p><table><thead>{line(HEADER, 'th')}</thead>"
        f"<tbody>{''.join(body)}</tbody></table>{notes}"
    )


def detail(record: Any) -> str:
    """One record in full: all statistics, local gradients, ways back, scan steps, stack."""
    lines = [f"#{record.number} {record.operation}  {shape(record)}"]
    lines += [f"  {'named':<15} {each}" for each in record.names if record.occurrences]
    for part, found in ("value", record.value_statistics), ("gradient", record.gradient_statistics):
        lines.append(f"  {part:<15} {_statistics(found)}")
    if record.unknown is not None:
        lines.append(f"  the gradient is {record.unknown}")
    for i, local in enumerate(record.local_gradients):
        if local is not None:
            lines.append(f"  local gradient  ∂/∂operand {i}: {_array(local)}")
    for path in record.paths if len(record.paths) > 1 else ():
        through = "" if path.through is None else f" #{path.through}"
        at = f", {path.line}" if path.line else ""
        lines.append(f"  by {path.operation}{through}{at}: {_array(path.gradient)}")
    if record.steps:
        lines.append("  in each step of the loop")
        steps = [", ".join(map(str, step.place.steps)) for step, _ in record.occurrences[:ROWS]]
        for i, (value, gradient) in zip(steps, record.by_step(), strict=False):
            lines.append(f"    {i:<4} value    {_statistics(value)}")
            lines.append(f"         gradient {_statistics(gradient)}")
    lines += [
        f"  at {line}, in {line.function}: {line.text}" for line in record.stack if line.is_users
    ]
    return "\n".join(lines)


def headline(origin: Any) -> str:
    what = f"{number(origin.result) if origin.result.size == 1 else 'it'}"
    if origin.direction == "given":
        return f"{origin.operation} is given as {what}"
    way = "value" if origin.direction == "forward" else "gradient"
    return f"{origin.operation} at {origin.line or 'an unknown line'} makes the {way} {what}"


def origin(found: Any) -> str:
    """What it is, the line, and the numbers that did it."""
    lines = [headline(found)]
    if found.line is not None:
        lines.append(f"    {found.line.text}")
        lines.append(f"  in              {found.line.function}, {found.line.file}")
    if found.scope:
        lines.append(f"  named           {found.scope}")
    if found.scan_steps:
        lines.append(f"  step            {', '.join(map(str, found.scan_steps))} of the loop")
    if found.entry:
        lines.append(f"  entry           {found.entry}")
    for i, operand in enumerate(found.operands):
        name = "operand" if len(found.operands) == 1 else f"operand {i}"
        mark = "  ← its gradient" if found.operand == i and len(found.operands) > 1 else ""
        lines.append(f"  {name:<15} {_in_full(operand)}{mark}")
    if found.direction == "backward" and found.operand is not None:
        if found.local_gradient is not None:
            lines.append(f"  local gradient  {_in_full(found.local_gradient)}")
        lines.append(f"  from above      {_in_full(found.gradient)}")
        lines.append(f"  sent back       {_in_full(found.result)}")
    elif found.direction != "given":
        lines.append(f"  value           {_in_full(found.result)}")
    more = len(found.reaches) - REACHES
    reaches = ", ".join(found.reaches[:REACHES]) + (f" and {more} more" if more > 0 else "")
    lines.append(f"  reaches         {reaches}")
    if found.repair is not None:
        operands = "x" if len(found.operands) == 1 else "x, y"
        of = "" if found.repair.own else f" of {found.operation}({operands})"
        lines.append(f"  write instead{of}")
        lines += [f"    {line}" for line in found.repair.text.splitlines()]
        lines.append(f"  for             {found.repair.because}")
    return "\n".join(lines)


def _short(text: str, width: int) -> str:
    """Of a long name the end tells more than the beginning."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _statistics(found: Any) -> str:
    if found is None:
        return "none"
    text = f"norm {number(found.norm)}  mean {number(found.mean)}  min {number(found.min)}  max "
    text += f"{number(found.max)}  zeros {found.zeros:.0%}"
    return text + (f"  NaN or Inf {found.nonfinite} of {found.size}" if found.nonfinite else "")


def _array(array: np.ndarray) -> str:
    """Small arrays in full, larger ones by their extremes."""
    array = np.asarray(array)
    if array.size == 1 and not np.iscomplexobj(array):
        return number(array.item())
    if array.size <= 6:
        wide = np.complex128 if np.iscomplexobj(array) else np.float64
        return np.array2string(array.astype(wide), precision=4).replace("\n", "")
    with np.errstate(all="ignore"):
        low, high = real(array).min(), real(array).max()
    return f"{array.dtype}{list(array.shape)} from {number(low)} to {number(high)}"


def _in_full(array: Any) -> str:
    """Every digit of a number, since the last one may be what does it; of many, the extremes."""
    array = np.asarray(array)
    if array.size == 1:
        return str(array.reshape(())[()])
    if array.size <= 6:
        return np.array2string(array, floatmode="unique").replace("\n", "")
    size = real(array)
    finite = array[np.isfinite(size)]
    text = f"{array.dtype}{list(array.shape)}"
    if finite.size:
        text += f" from {finite.min()} to {finite.max()}"
    if finite.size < array.size:
        text += f", {np.isnan(size).sum()} NaN, {np.isinf(size).sum()} Inf"
    return text
