"""Reading a function for the uses of its parameters, and running it so that each can be seen.

`survey` follows the parameters' views through a jaxpr, into calls, remat and loops. Where one meets
something of the example in an operation of `sites`, that use is a *site*: the parameter's gradient
there needs not be formed. Any other use is *formed*, by the walk, as ever.

The surveyed function runs as before, but its parameters are held fixed at the sites, to each site's
output a *probe* is added, which is zero, and what the parameter met there is kept. The gradient by
the probe is then the cotangent of the output. In a loop, probes are slices and what is kept is
stacked, so that both have an axis of the steps.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jaxbackprop.graph.dependence import lengths, open_jaxpr, parts
from jaxbackprop.graph.loop import once
from jaxbackprop.graph.unformed.sites import KINDS, Site
from jaxbackprop.graph.unformed.views import View, through, within
from jaxbackprop.graph.walk import evaluate, is_flat

Run = Callable[[Sequence, Sequence], tuple[list, list]]


class Formed(NamedTuple):
    """One use of a parameter whose gradient is formed: in which equation, in which others, why."""

    leaf: int
    equations: tuple
    why: str


class Survey(NamedTuple):
    """What a graph does with its parameters.

    `run(inputs, probes) -> (outputs, kept)`, with one probe and one kept value a site, in order;
    `views` are those among its outputs.
    """

    sites: list[Site]
    formed: list[Formed]
    views: list[View | None]
    run: Run


def survey(
    jaxpr: Any, consts: Sequence, views: Sequence[View | None], varying: Sequence[bool]
) -> Survey:
    """Follow the inputs that are `views` of parameters; `varying` ones depend on the example."""
    seen = {v: view for v, view in zip(jaxpr.invars, views, strict=True) if view is not None}
    varies = {v for v, does in zip(jaxpr.invars, varying, strict=True) if does}
    steps = []
    for equation in jaxpr.eqns:
        variables = [None if isinstance(v, Literal) else v for v in equation.invars]
        flags = [v in varies for v in variables]
        step = _step(equation, [seen.get(v) for v in variables], flags)
        steps.append(step)
        varies.update(equation.outvars if any(flags) else ())
        found = zip(equation.outvars, step.views, strict=True)
        seen.update((v, view) for v, view in found if view is not None)

    def run(inputs, probes):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        probes, kept = iter(probes), []

        def read(v):
            return v.val if isinstance(v, Literal) else values[v]

        for equation, step in zip(jaxpr.eqns, steps, strict=True):
            given = list(islice(probes, len(step.sites)))
            outputs, found = step.run([read(v) for v in equation.invars], given)
            values.update(zip(equation.outvars, outputs, strict=True))
            kept += found
        return [read(v) for v in jaxpr.outvars], kept

    return Survey(
        [site for step in steps for site in step.sites],
        [use for step in steps for use in step.formed],
        [None if isinstance(v, Literal) else seen.get(v) for v in jaxpr.outvars],
        run,
    )


def _step(equation: Any, views: list[View | None], varying: list[bool]) -> Survey:
    """What one equation does with its inputs, of which some may be views."""
    name = equation.primitive.name
    given = {place: view for place, view in enumerate(views) if view is not None}
    if not given or is_flat(equation):
        return _plain(equation)
    if name in INSIDE:
        inner = INSIDE[name](equation, views, varying)
        around = [use._replace(equations=(equation, *use.equations)) for use in inner.formed]
        return inner._replace(formed=around)
    place, view = next(iter(given.items()))
    if len(given) == 1 and _floating(equation.outvars):
        moved = through(equation, view)
        if moved is not None:
            return _plain(equation)._replace(views=moved)
    why = _why_formed(equation, list(given), varying)
    if why is None:
        return _site(equation, place, view)
    formed = [Formed(view.leaf, (equation,), why) for view in given.values()]
    return _plain(equation)._replace(formed=formed)


def _plain(equation: Any) -> Survey:
    return Survey(
        [], [], [None for _ in equation.outvars], lambda inputs, _: (evaluate(equation, inputs), [])
    )


def _floating(variables: Sequence) -> bool:
    return all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in variables)


def _why_formed(equation: Any, places: list[int], varying: list[bool]) -> str | None:
    if equation.primitive.name not in KINDS:
        return f"used by '{equation.primitive.name}', which is no product with the parameter"
    if not _floating(equation.outvars):
        return "it meets complex numbers"
    if len(places) > 1:
        return "it meets another parameter"
    if not any(varying):
        return "it meets nothing of the example"
    return KINDS[equation.primitive.name].fits(equation, places[0])


def _site(equation: Any, place: int, view: View) -> Survey:
    def run(inputs, probes):
        held = [lax.stop_gradient(x) if i == place else x for i, x in enumerate(inputs)]
        (output,) = evaluate(equation, held)
        kept = KINDS[equation.primitive.name].kept(equation, inputs, place)
        return [output + probes[0]], [kept]

    return Survey([Site(equation, place, view)], [], [None], run)


def _call(equation: Any, views: list, varying: list[bool]) -> Survey:
    """A jitted function is looked into."""
    return survey(*open_jaxpr(equation.params["jaxpr"]), views, varying)


def _remat(equation: Any, views: list, varying: list[bool]) -> Survey:
    """Computed twice as before, but for what is kept of its sites."""
    inner = _closed(survey(*open_jaxpr(equation.params["jaxpr"]), views, varying), equation)
    options = {name: equation.params[name] for name in ("prevent_cse", "policy")}
    return inner._replace(run=jax.checkpoint(inner.run, **options))


def _scan(equation: Any, views: list, varying: list[bool]) -> Survey:
    """A loop: its constants are read at every step, its slices one at each."""
    params = equation.params
    n_consts, n_carry = lengths(params)
    of_consts, of_carry, of_xs = parts(views, n_consts, n_carry)
    consts_vary, _, xs_vary = parts(varying, n_consts, n_carry)
    inside = [
        *(view and within(view, params["length"], False) for view in of_consts),
        *(None for _ in of_carry),
        *(view and within(view, params["length"], True) for view in of_xs),
    ]
    flags = [*consts_vary, *(any(varying) for _ in of_carry), *xs_vary]
    inner = _closed(survey(*open_jaxpr(params["jaxpr"]), inside, flags), equation)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}

    def run(inputs, probes):
        consts, carry, xs = parts(inputs, n_consts, n_carry)
        places = []

        def body(carry, slices):
            x, probes = slices
            outputs, kept = inner.run([*consts, *carry, *x], probes)
            kept, places[:] = once(kept)  # three products of one value: one stack
            return outputs[:n_carry], (outputs[n_carry:], kept)

        carry, (ys, kept) = lax.scan(body, carry, (xs, probes), **options)
        return [*carry, *ys], [kept[place] for place in places]

    started = [
        Formed(view.leaf, (), "carried from step to step by a loop") for view in of_carry if view
    ]
    return inner._replace(run=run, formed=[*inner.formed, *started])


def _closed(inner: Survey, equation: Any) -> Survey:
    """Views do not leave a graph that runs apart: what it returns of a parameter is formed."""
    left = [
        Formed(view.leaf, (), f"returned from within a '{equation.primitive.name}'")
        for view in inner.views
        if view is not None
    ]
    return inner._replace(formed=[*inner.formed, *left], views=[None for _ in equation.outvars])


# The operations that contain a graph which is read like the function itself.
INSIDE = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), _call),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
}
