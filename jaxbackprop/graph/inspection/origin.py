"""Which operation made the first NaN or Inf, on the way forward or on the way back.

From a result or gradient that is not finite the search goes back in time, through the entries that
are not finite either, to the operations that made them from finite numbers. A NaN that was given is
its own origin. Where only Inf was given, as in a mask of -Inf, it is the operation that made NaN
of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection import report
from jaxbackprop.graph.inspection.local import entry_by_entry, local_gradients
from jaxbackprop.graph.inspection.repairs import Repair, repair
from jaxbackprop.graph.inspection.ruled import inside_the_rule
from jaxbackprop.graph.inspection.statistics import ill, nans, numbers
from jaxbackprop.graph.inspection.steps import Graph, Step, Value, origin_of
from jaxbackprop.graph.lines import Line, expression, innermost, stack
from jaxbackprop.graph.names import scope

Mask = np.ndarray | np.bool_


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Origin:
    """The first operation that turned finite numbers into one that is not, at one such entry.

    Its `direction` is "forward" where its value is not finite; "backward" where the value is, and
    what it sends back to `operand` is not, or where it stands in a backward rule (custom_vjp), and
    `operand` is None. `operands`, `local_gradient` and `gradient`, the one
    that arrives from above, are the numbers at the `entry` where the operation goes entry by entry,
    and whole arrays elsewhere. Numbers that were given have the direction "given", and no line.
    `reaches` names the results that are not finite because of it. `repair` is what to write
    instead, where that is known; `scope` the names that it stands in, of flax linen's modules too.
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


class Event(NamedTuple):
    """Numbers that an operation made not finite; `operand` is None for the value it computed."""

    step: Step
    operand: int | None
    where: Mask


class Search(NamedTuple):
    """What is found: from finite numbers, NaN from other numbers, and what was given."""

    made: list[Event]
    made_nan: list[Event]
    given: list[tuple[Value, Mask]]


def origin(graph: Graph) -> Origin | None:
    """The origin of what is not finite in the result and in the gradients; None where all are."""
    symptoms = _symptoms(graph)
    if not any(symptoms):
        return None
    search = _search(graph, *symptoms)
    reaches = tuple(_reached(graph))
    for value, where in search.given:
        if np.isnan(numbers(value.array)[where]).any():
            return _given(graph, value, where, reaches)
    for events in (search.made, search.made_nan):
        if events:
            return _from_inside(events[0], reaches) or _origin(events[0], reaches)
    return _given(graph, *search.given[0], reaches) if search.given else None


def _from_inside(event: Event, reaches: tuple[str, ...]) -> Origin | None:
    """Where the operation has a backward rule of its own: the operation in that rule."""
    if event.operand is None:
        return None
    inside = inside_the_rule(event.step, event.operand)
    if inside is None:
        return None
    results, _ = _symptoms(inside)
    search = _search(inside, {v: bad & event.where for v, bad in results.items()}, {})
    made = [*search.made, *search.made_nan]
    return dataclasses.replace(_origin(made[0], reaches), direction="backward") if made else None


# --- the search ---

Wanted = dict[Value, Mask]


def _symptoms(graph: Graph) -> tuple[Wanted, Wanted]:
    """What is not finite among the results, and among the gradients."""
    pairs = zip(graph.tape.jaxpr.invars, graph.gradients, strict=True)
    gradients = {v: ill(g) for v, g in pairs if g is not None and ill(g).any()}
    results = {v: ill(v.array) for v in graph.tape.jaxpr.outvars if ill(v.array).any()}
    return results, gradients


def _search(graph: Graph, values: Wanted, gradients: Wanted) -> Search:
    """Back in time: through the backward pass, last operation first, then the forward pass.

    `values` and `gradients` say which entries are to be explained; both grow on the way.
    """
    made, made_nan = [], []
    pulls = {node.equation: node.pull for node in graph.tape.nodes}
    for step in graph.steps:
        for i, where in _to_explain(step, gradients):
            made_of = _blame_backward(step, i, where, pulls[step], values, gradients)
            if made_of.finite.any():
                made.append(Event(step, i, made_of.finite))
            if made_of.no_nan.any():
                made_nan.append(Event(step, i, made_of.no_nan))
    for step in reversed(graph.steps):
        for v in step.outvars:
            where = values.get(v, np.False_) & ill(v.array)
            if where.any() and not _ask_inside(step, v, where, values):
                made_of = _blame(where, v.array, step, step.invars, values)
                if made_of.finite.any():
                    made.append(Event(step, None, made_of.finite))
                if made_of.no_nan.any():
                    made_nan.append(Event(step, None, made_of.no_nan))
    computed = {v for step in graph.steps for v in step.outvars}
    given = [(v, where) for v, where in values.items() if v not in computed and where.any()]
    return Search(made[::-1], made_nan[::-1], given)


class MadeOf(NamedTuple):
    """The entries that were made of finite numbers alone; and the NaN made of no NaN."""

    finite: Mask
    no_nan: Mask


def _to_explain(step: Step, gradients: Wanted) -> Iterator[tuple[int, Mask]]:
    """The operands to whose gradient the step sent something not finite that is to be explained."""
    for i, (v, contribution) in enumerate(zip(step.invars, step.contributions, strict=False)):
        if contribution is not None and v in gradients:
            where = gradients[v] & ill(contribution)
            if where.any():
                yield i, where


def _blame_backward(
    step: Step, i: int, where: Mask, pull: Any, values: Wanted, gradients: Wanted
) -> MadeOf:
    """Is it what arrived from above, or the operation's own values?

    To tell, its way back is tried with a gradient of ones where the one that arrived is not finite.
    """
    cts, contribution = step.cts, step.contributions[i]
    own = where
    if any(ct is not None and ill(ct).any() for ct in cts):
        tried = pull([None if ct is None else jnp.where(jnp.isfinite(ct), ct, 1) for ct in cts])
        own = where & ill(tried[i])
    above = [(v, ct) for v, ct in zip(step.outvars, cts, strict=True) if ct is not None]
    for v, ct in above:
        bad = _same_entries(step, where & ~own, ill(ct)) if (where & ~own).any() else None
        if bad is not None:
            gradients[v] = gradients.get(v, np.zeros_like(bad)) | bad
    nothing = MadeOf(np.zeros_like(own), nans(contribution) & where & ~own)
    if any(nans(ct).any() for _, ct in above):
        nothing = nothing._replace(no_nan=np.zeros_like(own))
    if not own.any():
        return nothing
    return _blame(own, contribution, step, [*step.invars, *step.outvars], values)


def _ask_inside(step: Step, v: Value, where: Mask, values: Wanted) -> bool:
    """A function with a rule of its own was evaluated by its steps, too: they are to explain it."""
    if not step.inside:
        return False
    made = origin_of(step.inside[step.outvars.index(v)])
    if not (ill(made.array) & where).any():
        return False
    values[made] = values.get(made, np.zeros_like(where)) | where
    return True


def _blame(
    where: Mask, array: Any, step: Step, operands: Sequence[Value], values: Wanted
) -> MadeOf:
    """Ask for the operands that are not finite at these entries; without any, it was made here."""
    finite, no_nan = where.copy(), where & nans(array)
    selects = step.equation.primitive.name == "select_n"
    for n, v in enumerate(operands):
        if v.tangent:  # a zero that stands for any number
            continue
        bad, nan = (_same_entries(step, where, found(v.array)) for found in (ill, nans))
        if selects and 0 < n < len(step.invars):  # what was not chosen explains nothing
            taken = np.asarray(operands[0].array).astype(int) == n - 1
            bad, nan = bad & taken, nan & taken
        if bad.any():
            source = origin_of(v)
            values[source] = values.get(source, np.zeros_like(bad)) | bad
            alike = bad.shape == where.shape and entry_by_entry(step)
            finite &= ~bad if alike else np.False_
            no_nan &= ~nan if alike else not nan.any()
    return MadeOf(finite, no_nan)


def _same_entries(step: Step, where: Mask, found: Mask) -> Mask:
    """Of what is found in an operand, only the entries in question where an operation keeps to
    them."""
    return found & where if found.shape == where.shape and entry_by_entry(step) else found


# --- the answer ---


def _origin(event: Event, reaches: tuple[str, ...]) -> Origin:
    step, i, where = event
    entry = tuple(map(int, np.argwhere(where)[0]))
    lines = stack(step.place.equations)
    backward = i is not None
    result = step.contributions[i] if backward else _of(step.outvars, where).array
    local = local_gradients(step)[i] if backward else None
    ct = next((ct for ct in step.cts if ct is not None), None) if backward else None
    at = entry if entry_by_entry(step) else None
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
