"""The search for what made numbers not finite, back in time through both passes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection.statistics import ill, nans
from jaxbackprop.graph.inspection.steps import Graph, Step, Value, origin_of
from jaxbackprop.graph.rules.table import entrywise

Mask = np.ndarray | np.bool_


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


Wanted = dict[Value, Mask]


def symptoms(graph: Graph) -> tuple[Wanted, Wanted]:
    """What is not finite among the results, and among the gradients."""
    pairs = zip(graph.tape.jaxpr.invars, graph.gradients, strict=True)
    gradients = {v: ill(g) for v, g in pairs if g is not None and ill(g).any()}
    results = {v: ill(v.array) for v in graph.tape.jaxpr.outvars if ill(v.array).any()}
    return results, gradients


def search_back(graph: Graph, values: Wanted, gradients: Wanted) -> Search:
    """Back in time: through the backward pass, last operation first, then the forward pass.

    `values` and `gradients` say which entries are to be explained; both grow on the way.
    """
    made, made_nan = [], []
    for step in graph.steps:
        for i, where in _to_explain(step, gradients):
            made_of = _blame_backward(step, i, where, values, gradients)
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


def _blame_backward(step: Step, i: int, where: Mask, values: Wanted, gradients: Wanted) -> MadeOf:
    """Is it what arrived from above, or the operation's own values?

    To tell, its way back is tried with a gradient of ones where the one that arrived is not finite.
    """
    cts, contribution = step.cts, step.contributions[i]
    own = where
    if any(ct is not None and ill(ct).any() for ct in cts):
        tried = step.back(
            [None if ct is None else jnp.where(jnp.isfinite(ct), ct, 1) for ct in cts]
        )
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
            alike = bad.shape == where.shape and entrywise(step.equation)
            finite &= ~bad if alike else np.False_
            no_nan &= ~nan if alike else not nan.any()
    return MadeOf(finite, no_nan)


def _same_entries(step: Step, where: Mask, found: Mask) -> Mask:
    """Of what is found in an operand, only the entries in question where an operation keeps to
    them."""
    return found & where if found.shape == where.shape and entrywise(step.equation) else found
