"""Which operation made the first NaN or Inf, on the way forward or on the way back.

From a result or gradient that is not finite the search goes back in time, through the entries that
are not finite either, to the operations that made them from finite numbers. A NaN that was given is
its own origin. Where only Inf was given, as in a mask of -Inf, it is the operation that made NaN
of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxbackprop.graph.inspection import report
from jaxbackprop.graph.inspection.local import local_gradients
from jaxbackprop.graph.inspection.repairs import Repair, repair
from jaxbackprop.graph.inspection.ruled import inside_the_rule
from jaxbackprop.graph.inspection.searching import Event, Mask, search_back, symptoms
from jaxbackprop.graph.inspection.sharded import on_a_device
from jaxbackprop.graph.inspection.statistics import ill, numbers
from jaxbackprop.graph.inspection.steps import Graph, Step, Value
from jaxbackprop.graph.lines import Line, expression, innermost, stack
from jaxbackprop.graph.names import scope
from jaxbackprop.graph.rules.table import entrywise


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Origin:
    """The first operation that turned finite numbers into one that is not, at one such entry.

    Its `direction` is "forward" where its value is not finite; "backward" where the value is, and
    what it sends back to `operand` is not, or where it stands in a backward rule (custom_vjp), and
    `operand` is None. `operands`, `local_gradient` and `gradient`, the one that arrives from above,
    are the numbers at the `entry` where the operation goes entry by entry, and whole arrays
    elsewhere; of an operation on a device there are none. Numbers that were given have the
    direction "given", and no line. `reaches` names the results that are not finite because of it.
    `repair` is what to write instead, where that is known; `scope` the names that it stands in, of
    flax linen's modules too.
    """

    direction: str
    operation: str
    line: Line | None
    stack: tuple[Line, ...]
    scan_steps: tuple[int, ...]
    entry: tuple[int, ...]
    operands: tuple[np.ndarray, ...]
    operand: int | None
    local_gradient: np.ndarray | None
    gradient: np.ndarray | None
    result: np.ndarray
    reaches: tuple[str, ...]
    repair: Repair | None = None
    scope: str = ""

    def __repr__(self) -> str:
        return report.origin(self)


def origin(graph: Graph) -> Origin | None:
    """The origin of what is not finite in the result and in the gradients; None where all are."""
    results, gradients = symptoms(graph)
    if not results and not gradients:
        return None
    search = search_back(graph, results, gradients)
    reaches = tuple(_reached(graph))
    for value, where in search.given:
        if np.isnan(numbers(value.array)[where]).any():
            return _given(graph, value, where, reaches)
    for events in (search.made, search.made_nan):
        if events:
            return _from_inside(events[0], reaches)
    return _given(graph, *search.given[0], reaches) if search.given else None


def _from_inside(event: Event, reaches: tuple[str, ...]) -> Origin:
    """The operation in a backward rule of one's own, or on a device, where it has either."""
    if event.operand is None:
        return _on_a_device(event, reaches)
    inside = inside_the_rule(event.step, event.operand)
    if inside is None:
        return _origin(event, reaches)
    results, _ = symptoms(inside)
    search = search_back(inside, {v: bad & event.where for v, bad in results.items()}, {})
    made = [*search.made, *search.made_nan]
    if not made:
        return _origin(event, reaches)
    return dataclasses.replace(_from_inside(made[0], reaches), direction="backward")


def _on_a_device(event: Event, reaches: tuple[str, ...]) -> Origin:
    """Of one device's equation the operation and the line are told; its numbers are there alone."""
    found, equation = _origin(event, reaches), on_a_device(event.step)
    if equation is None:
        return found
    equations = (*event.step.place.equations, equation)
    lines, operation = stack(equations), equation.primitive.name
    return dataclasses.replace(
        found,
        operation=operation,
        line=innermost(lines),
        stack=lines,
        entry=(),
        operands=(),
        repair=None,
    )


# --- the answer ---


def _origin(event: Event, reaches: tuple[str, ...]) -> Origin:
    step, i, where = event
    entry = tuple(map(int, np.argwhere(where)[0]))
    lines = stack(step.place.equations)
    backward = i is not None
    result = step.contributions[i] if backward else _of(step.outvars, where).array
    local = local_gradients(step)[i] if backward else None
    ct = next((ct for ct in step.cts if ct is not None), None) if backward else None
    at = entry if entrywise(step.equation) else None
    return Origin(
        "backward" if backward else "forward",
        step.equation.primitive.name,
        innermost(lines),
        lines,
        step.place.steps,
        entry,
        tuple(_at(v.array, at) for v in step.invars),
        i,
        None if local is None else _at(local, entry),
        None if ct is None else _at(ct, at),
        _at(result, entry),
        reaches,
        _repair(step, at),
        scope(step.place.equations),
    )


def _repair(step: Step, at: tuple[int, ...] | None) -> Repair | None:
    """A repair of the operation on whole arrays; else of this entry, if others have another ill."""
    operation = step.equation.primitive.name
    power = [step.equation.params["y"]] if operation == "integer_pow" else []
    where = expression(step.place.equations)
    arrays = [v.array for v in step.invars]
    moving = [*(v.active for v in step.invars), *(False for _ in power)]
    whole = repair(operation, [*arrays, *power], where, moving)
    if whole is not None or at is None:
        return whole
    return repair(operation, [*(_at(array, at) for array in arrays), *power], where, moving)


def _of(outputs: Sequence[Value], where: Mask) -> Value:
    fits = [v for v in outputs if np.shape(v.array) == where.shape and (ill(v.array) & where).any()]
    return fits[0]


def _given(graph: Graph, value: Value, where: Mask, reaches: tuple[str, ...]) -> Origin:
    names = dict(zip(graph.tape.jaxpr.invars, graph.names, strict=True))
    entry = tuple(map(int, np.argwhere(where)[0]))
    name = names.get(value) or graph.constants.get(id(value.array), "a constant")
    result = _at(value.array, entry)
    return Origin("given", name, None, (), (), entry, (), None, None, None, result, reaches)


def _reached(graph: Graph) -> Iterator[str]:
    if any(ill(v.array).any() for v in graph.tape.jaxpr.outvars):
        yield "the result"
    for name, gradient in zip(graph.names, graph.gradients, strict=True):
        if gradient is not None and ill(gradient).any():
            yield f"the gradient of {name}"


def _at(array: Any, entry: tuple[int, ...] | None) -> np.ndarray:
    """The number at an entry; of a single number itself; the whole array where there is none."""
    array = np.asarray(array)
    return array if entry is None or array.ndim != len(entry) else np.asarray(array[entry])
