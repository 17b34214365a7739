"""`locate`: which operation made the first number that is not finite, found by compiled programs.

Every operation gets a witness. What was made not finite, and when, is read off one run; which of it
is the cause is found by bisection: all that is made after a moment is healed, and the first moment
that leaves the results spoiled nevertheless is that of the origin. The numbers are then computed
again by the inspector, from what the operation was given.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from jaxbackprop.graph.api import value_and_grad
from jaxbackprop.graph.custom import jvp_graph
from jaxbackprop.graph.inspection.origin import Origin
from jaxbackprop.graph.inspection.steps import without_alarms
from jaxbackprop.graph.walk import is_real
from jaxbackprop.graph.watching.evidence import account, capture, placed, without_line
from jaxbackprop.graph.watching.rewriting import Ears, Plan, plan
from jaxbackprop.graph.watching.sites import ENTERED, Site
from jaxbackprop.graph.watching.tracing import Traced, trace, visited
from jaxbackprop.graph.watching.witness import CARRIERS, ears, witnesses


class Event(NamedTuple):
    """Something made at a site: on which way, at which scan steps, for which operand (backward)."""

    backward: bool
    moment: tuple[int, ...]
    operand: int
    site: int
    steps: tuple[int, ...]


NOTHING = Event(False, (), 0, -1, ())


def locate(f: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable:
    """A function with f's arguments: where its value or gradient first is not finite, or None.

    The answer is an `Origin`, as of `inspect`: its .operation, .line, .scan_steps, .direction
    ("forward"; "backward"; "given", of a number among the arguments), and the operand with its
    numbers. f runs compiled, a scan as a scan; nothing but f itself is compiled where all is well.

    None says that this program made nothing that is not finite, not that another did not: a NaN
    that only the fused program of a training step makes need not recur. Where the function compiled
    by itself makes one, and not where each operation is witnessed, the direction is "fused".
    Raises TypeError under jit, where there are no values.
    """

    def located(*args: Any, **kwargs: Any) -> Origin | None:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            raise TypeError(
                "locate runs compiled programs of its own and looks at their results: call it "
                "outside of jit, with the arguments of the step that failed"
            )
        with without_alarms():
            traced = trace(f, argnums, args, kwargs, has_aux, constants=True)
            _trace_rules(traced.sites)
            reaches = _spoiled(traced, _program(traced, plan((), _nobody), has_aux)({})[0])
            return _search(traced, has_aux, reaches) if reaches else None

    return located


def _trace_rules(sites: Sequence[Site]) -> None:
    """What is in a rule of custom_jvp has its own lines: in the midst of a walk, where it would be
    traced else, and kept, it would have that of the call."""
    for site in sites:
        if site.equation.primitive.name == "custom_jvp_call" and site.active:
            jvp_graph(site.equation, site.operands[site.equation.params["num_consts"] :])


def _nobody(visit: Any) -> Any:
    raise NotImplementedError


def _search(traced: Traced, has_aux: bool, reaches: tuple[str, ...]) -> Origin:
    """What was made of finite numbers; if that is not the cause, NaN made of Inf; else the given.

    Operations that only carry numbers on are left out at first: there are many. Where Inf was given
    only NaN is a spoiled result.
    """
    for of_inf in (False, True):
        chosen = _equations(traced.sites, carriers=of_inf)
        run = _program(traced, plan(chosen, witnesses(chosen, of_inf)), has_aux, of_inf)
        found = _bisect(chosen, run)
        if found is not None and not (of_inf and found == NOTHING):
            break
    else:
        return _given(traced, reaches)
    if found == NOTHING:
        what = "an operation as the compiler fused it"
        return without_line(direction="fused", operation=what, reaches=reaches)
    site = chosen[found.site]
    catching, silence = capture(site)
    caught = _program(traced, catching, has_aux)(silence)
    told = account(site, found.steps, found.backward, not of_inf, caught)
    way = "backward" if found.backward else "forward"
    return placed(told, site, found.steps, direction=way, reaches=reaches)


def _bisect(chosen: Sequence[Site], run: Callable[[Ears], tuple]) -> Event | None:
    """The first event that spoils the results though all that is made after it is healed.

    NOTHING where they are not spoiled at all, None where they are even if everything is healed.
    """
    moments = _moments(chosen)

    def spoiled(after: Event | None) -> bool:
        return any(run(ears(chosen, lambda n, site: _after(moments[n], site, after)))[0])

    bad, seen, heard = run(ears(chosen, lambda n, site: _nothing(site)))
    if not any(bad):
        return NOTHING
    if spoiled(None):
        return None
    events = sorted(_events(moments, seen, heard))
    low, high = -1, len(events) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if spoiled(events[middle]) else (middle, high)
    return events[high]


def _equations(sites: Sequence[Site], carriers: bool) -> list[Site]:
    """One site for each equation; loops and branches have witnesses inside."""
    first = {site.key[:-1]: site for site in reversed(sites)}
    chosen = {site.key for site in first.values()}
    left_out = {*ENTERED} if carriers else {*ENTERED, *CARRIERS}
    return [s for s in sites if s.key in chosen and s.equation.primitive.name not in left_out]


def _program(
    traced: Traced, plan: Plan, has_aux: bool, nan_alone: bool = False
) -> Callable[[Ears], tuple]:
    """The compiled function of the ears: (what is not finite, what is seen, what is heard).

    The constants of the graph are arguments, so that nothing is computed while compiling.
    """

    @jax.jit
    def run(consts, leaves, wanted, ears):
        graph = ClosedJaxpr(traced.graph.jaxpr, consts)
        whole = visited(traced._replace(graph=graph, leaves=leaves), plan, has_aux)
        (value, (_, seen)), (gradients, heard) = value_and_grad(whole, (0, 1), True)(wanted, ears)
        ill = jnp.isnan if nan_alone else lambda x: ~jnp.isfinite(x)
        bad = [jnp.any(ill(each)) for each in (value, *gradients)]
        return bad, {n: each for n, (each, _) in seen.items()}, heard

    arguments = traced.graph.consts, [jnp.asarray(x) for x in traced.leaves], traced.wanted
    return lambda ears: jax.device_get(run(*arguments, ears))


def _spoiled(traced: Traced, bad: Sequence) -> tuple[str, ...]:
    names = ("the result", *(f"the gradient of {label.scope}" for label in traced.parameters))
    return tuple(name for name, own in zip(names, bad, strict=True) if own)


# --- moments ---


def _moments(chosen: Sequence[Site]) -> list[list]:
    """When each site is computed, as the parts of a moment: numbers, and grids over scan steps.

    A part for the first site of each scan around it, then the scan's step; last the site's number.
    """
    first: dict[tuple, int] = {}
    found = []
    for n, site in enumerate(chosen):
        parts, axis = [], 0
        for depth, around in enumerate(site.place[:-1]):
            if around.equation.primitive.name == "scan":
                way = tuple(id(each.equation) for each in site.place[: depth + 1])
                steps = np.arange(site.steps[axis])
                order = steps[::-1] if around.equation.params["reverse"] else steps
                shape = [-1 if a == axis else 1 for a in range(len(site.steps))]
                parts += [first.setdefault(way, n), order.reshape(shape)]
                axis += 1
        found.append([*parts, n])
    return found


def _nothing(site: Site) -> np.ndarray:
    return np.zeros((*site.steps, 1 + len(site.operands)))


def _after(moment: list, site: Site, event: Event | None) -> np.ndarray:
    """Of a site, in each step: is its value made after the event, and what it sends back?"""
    healed = _nothing(site)
    if event is None:
        return healed + 1
    later, same = np.zeros(site.steps, bool), np.ones(site.steps, bool)
    sign = -1 if event.backward else 1
    for part, then in zip(moment, event.moment, strict=False):
        later = later | (same & (sign * np.asarray(part) > then))
        same = same & (sign * np.asarray(part) == then)
    if not event.backward:
        healed[..., 0], healed[..., 1:] = later, 1
    else:
        operands = np.arange(len(site.operands))
        healed[..., 1:] = later[..., None] | (same[..., None] & (operands > event.operand))
    return healed


def _events(moments: list[list], seen: dict[int, Any], heard: dict[int, Any]) -> Iterator[Event]:
    for n in seen:
        for steps in np.argwhere(seen[n] > 0):
            yield Event(False, _at(moments[n], steps, 1), 0, n, tuple(map(int, steps)))
        for *steps, operand in np.argwhere(heard[n].heard > 0):
            at = _at(moments[n], steps, -1)
            yield Event(True, at, int(operand), n, tuple(map(int, steps)))


def _at(moment: list, steps: Iterable, sign: int) -> tuple[int, ...]:
    """The moment of one step; the way back has the signs of all parts turned."""
    axes = iter(steps)
    return tuple(
        sign * int(part if np.ndim(part) == 0 else part.ravel()[next(axes)]) for part in moment
    )


# --- without a line ---


def _given(traced: Traced, reaches: tuple[str, ...]) -> Origin:
    """A number that was among the arguments: NaN first, then Inf."""
    arrays = [*zip(traced.leaves, traced.names, strict=True)]
    arrays += [(const, "a constant") for const in traced.graph.consts]
    for test in np.isnan, np.isinf:
        for array, name in arrays:
            if is_real(array) and test(np.asarray(array, np.float64)).any():
                entry = np.argwhere(test(np.asarray(array, np.float64)))[0]
                at = tuple(map(int, entry))
                return without_line(
                    direction="given",
                    operation=name,
                    entry=at,
                    result=np.asarray(np.asarray(array)[at]),
                    reaches=reaches,
                )
    what = "what the function computes of no argument"
    return without_line(direction="given", operation=what, reaches=reaches)
