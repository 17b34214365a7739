"""What one operation was given, caught in a compiled program; and the inspector's account of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxbackprop.graph import walk
from jaxbackprop.graph.inspection.origin import Origin, origin
from jaxbackprop.graph.inspection.steps import Ends, Graph, Place
from jaxbackprop.graph.inspection.unfold import unfold
from jaxbackprop.graph.lines import innermost, stack
from jaxbackprop.graph.names import scope
from jaxbackprop.graph.walk import is_real
from jaxbackprop.graph.watching.labels import operation
from jaxbackprop.graph.watching.rewriting import Plan, Visit, plan
from jaxbackprop.graph.watching.sites import Site


def capture(site: Site) -> tuple[Plan, dict[int, Any]]:
    """A plan that shows what the site's equation is given, and hears what arrives from above."""

    @jax.custom_vjp
    def hear(outputs, ear):
        return outputs

    hear.defvjp(lambda outputs, ear: (outputs, None), lambda _, cts: (cts, cts))

    def visitor(visit: Visit) -> tuple[list, dict[int, Any]]:
        outputs = visit.run()
        if site.active:
            real = [k for k, output in enumerate(outputs) if is_real(output)]
            heard = hear([outputs[k] for k in real], visit.ears[0])
            for k, output in zip(real, heard, strict=True):
                outputs[k] = output
        return outputs, {0: list(visit.inputs)}

    real = [v.aval for v in site.equation.outvars if is_real(v.aval)]
    silence = [jnp.zeros((*site.steps, *aval.shape), aval.dtype) for aval in real]
    return plan((site,), visitor), {0: silence}


class Alone(NamedTuple):
    """A graph of one equation, in which what is not differentiated is constant."""

    constvars: list
    invars: list
    eqns: list
    outvars: list


def account(
    site: Site, steps: tuple[int, ...], backward: bool, of_finite: bool, caught: tuple
) -> Origin | None:
    """The inspector's account of the equation at one step; None where it finds nothing again.

    Entries that were not finite before it, which are not its doing, are left out: they become 1.
    """
    _, seen, heard = caught
    given = {}
    for v, x, active in zip(site.equation.invars, seen[0], site.operands, strict=True):
        if not isinstance(v, Literal):
            given[v] = _without(x[steps], of_finite), given.get(v, (None, False))[1] or active
    constants = {v: x for v, (x, active) in given.items() if not active}
    variables = {v: x for v, (x, active) in given.items() if active}
    outvars = list(site.equation.outvars)
    alone = Alone(list(constants), list(variables), [site.equation], outvars)
    place = Place(tuple(around.equation for around in site.place[:-1]), steps)
    laid_out, tape = unfold(alone, list(constants.values()), list(variables.values()), place)
    cts = iter(heard[0])
    from_above = [
        _without(next(cts)[steps], of_finite) if is_real(v.aval) else None for v in outvars
    ]
    from_above = [ct if a else None for ct, a in zip(from_above, tape.active_outputs, strict=True)]
    gradients = [None] * len(variables)
    if backward:
        gradients = walk.backward(tape, from_above, leave_what_is_seen)
        tape = tape._replace(jaxpr=Ends(tape.jaxpr.invars, []))
    names = tuple("" for _ in variables)
    return origin(Graph(laid_out, tape, names, tuple(gradients), {}))


def _without(array: Any, of_finite: bool) -> jax.Array:
    if not is_real(array):
        return jnp.asarray(array)
    ill = ~np.isfinite(array) if of_finite else np.isnan(array)
    return jnp.asarray(np.where(ill, np.ones_like(array), array))


def leave_what_is_seen(node: Any, cts: Sequence, contributions: Sequence) -> None:
    node.equation.cts, node.equation.contributions = tuple(cts), tuple(contributions)


def placed(found: Origin | None, site: Site, steps: tuple[int, ...], **known: Any) -> Origin:
    """The account, and the results that it reaches; what is `known` where there is none."""
    if found is not None:
        return dataclasses.replace(found, reaches=known["reaches"])
    outer = [around.equation for around in site.place]
    lines = stack(outer)
    where = {"line": innermost(lines), "stack": lines, "scan_steps": steps}
    return without_line(operation=operation(site.equation), scope=scope(outer), **where, **known)


def without_line(**known: Any) -> Origin:
    """An origin of which only this much is known."""
    empty = {"line": None, "stack": (), "scan_steps": (), "entry": (), "operands": ()}
    empty |= {"operand": None, "local_gradient": None, "gradient": None, "result": np.array(np.nan)}
    return Origin(**(empty | known))
