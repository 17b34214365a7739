"""A scan walked back by a scan: last step first, and no more kept of a step than its walk reads.

One step, forward and back, is traced as one graph. What does not depend on the cotangents is the
forward part; the rest is the backward part; the values that cross from one to the other are the
*residuals*, and the only ones that the forward loop stores.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jaxbackprop.graph.structure import open_jaxpr, recorder, through
from jaxbackprop.graph.walk import FLAT, evaluate, forward, is_real


@recorder("scan")
def scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Cotangents of the carry go from step to step, those of the loop's constants are summed over
    the steps, those of the slices are stacked."""
    params = equation.params
    n_consts, n_carry = lengths(params)
    options = {"length": params["length"], "unroll": params["unroll"]}
    reverse = params["reverse"]
    consts, start, xs = parts(inputs, n_consts, n_carry)
    jaxpr, closed = open_jaxpr(params["jaxpr"])
    flags, out_flags = dependence(jaxpr, active, n_consts, n_carry)
    step = _split_step(jaxpr, closed, flags, out_flags, n_consts, n_carry)

    def ahead(carry, x):
        outputs, residuals = step.ahead([*consts, *carry, *x])
        return outputs[:n_carry], (outputs[n_carry:], residuals)

    end, (ys, residuals) = lax.scan(ahead, start, xs, reverse=reverse, **options)

    def pull(cts):
        outs = [*end, *ys]
        cts = [
            (jnp.zeros_like(out) if ct is None else ct) if flag else None
            for ct, out, flag in zip(cts, outs, out_flags, strict=True)
        ]
        totals = [jnp.zeros_like(x) if a else None for x, a in zip(consts, flags, strict=False)]

        def back(state, slices):
            totals, ct_carry = state
            x, kept, ct_y = slices
            found = step.back(consts, x, kept, [*ct_carry, *ct_y])
            of_consts, of_carry, of_x = parts(found, n_consts, n_carry)
            totals = [g if t is None else t + g for t, g in zip(totals, of_consts, strict=True)]
            return (totals, of_carry), of_x

        state, of_xs = lax.scan(
            back,
            (totals, cts[:n_carry]),
            (xs, residuals, cts[n_carry:]),
            reverse=not reverse,
            **options,
        )
        found = [*state[0], *state[1], *of_xs]
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return [*end, *ys], pull


def lengths(params: dict) -> tuple[int, int]:
    """How many constants and carried values a scan has; jax 0.12 keeps them as a tree."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = map(len, params["ft_in"].unpack())
    return consts, carry


def parts(values: Sequence, n_consts: int, n_carry: int) -> tuple[list, list, list]:
    """The constants, the carry and the slices among a scan's inputs."""
    values = list(values)
    return values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]


def dependence(
    jaxpr: Any, active: list[bool], n_consts: int, n_carry: int
) -> tuple[list[bool], list[bool]]:
    """Which inputs and outputs of the body want a gradient.

    A carry does as soon as any step makes it depend on something that does: the smallest fixed
    point.
    """
    flags = [a and is_real(v.aval) for a, v in zip(active, jaxpr.invars, strict=True)]
    while True:
        wanted = {v for v, a in zip(jaxpr.invars, flags, strict=True) if a}
        for equation in jaxpr.eqns:
            flat = equation.primitive.name in FLAT
            if not flat and any(v in wanted for v in _reads(equation)):
                wanted.update(v for v in equation.outvars if is_real(v.aval))
        outs = [not isinstance(v, Literal) and v in wanted for v in jaxpr.outvars]
        carry = [
            old or new for old, new in zip(flags[n_consts : n_consts + n_carry], outs, strict=False)
        ]
        grown = [*flags[:n_consts], *carry, *flags[n_consts + n_carry :]]
        if grown == flags:
            return flags, [*carry, *outs[n_carry:]]
        flags = grown


def _reads(equation: Any) -> list:
    return [v for v in equation.invars if not isinstance(v, Literal)]


class Step(NamedTuple):
    """One step of the loop, and one step back.

    `ahead(inputs) -> (outputs, residuals)`;
    `back(consts, x, residuals, cts) -> the inputs' cotangents`, None where none is wanted.
    """

    ahead: Callable[[list], tuple[list, list]]
    back: Callable[[list, list, list, list], list]


def _split_step(
    jaxpr: Any,
    closed: Sequence,
    flags: list[bool],
    out_flags: list[bool],
    n_consts: int,
    n_carry: int,
) -> Step:
    def there_and_back(inputs, cts):
        outputs, pull = through(forward(jaxpr, closed, inputs, flags))
        given = iter(cts)
        found = pull([next(given) if flag else None for flag in out_flags])
        wanted = [
            jnp.zeros_like(x) if g is None else g
            for x, g, flag in zip(inputs, found, flags, strict=True)
            if flag
        ]
        return outputs, wanted

    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    ct_types = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
        for v, flag in zip(jaxpr.outvars, out_flags, strict=True)
        if flag
    ]
    whole, whole_consts = open_jaxpr(jax.make_jaxpr(there_and_back)(types, ct_types))
    base = dict(zip(whole.constvars, whole_consts, strict=True))
    own, ct_variables = whole.invars[: len(flags)], whole.invars[len(flags) :]
    consts, _, xs = parts(own, n_consts, n_carry)
    outputs, gradients = whole.outvars[: len(out_flags)], whole.outvars[len(out_flags) :]
    early, late, residuals = _partition(
        whole, ct_variables, {*whole.constvars, *consts}, set(xs), gradients
    )

    def ahead(inputs):
        values = base | dict(zip(own, inputs, strict=True))
        _run(early, values)
        return _read(values, outputs), _read(values, residuals)

    def back(consts_, x, kept, cts):
        values = base | dict(zip(consts, consts_, strict=True)) | dict(zip(xs, x, strict=True))
        values |= dict(zip(residuals, kept, strict=True))
        values |= dict(zip(ct_variables, [ct for ct in cts if ct is not None], strict=True))
        _run(late, values)
        found = iter(_read(values, gradients))
        return [next(found) if flag else None for flag in flags]

    return Step(ahead, back)


def _partition(
    jaxpr: Any, ct_variables: Sequence, fixed: set, slices: set, gradients: Sequence
) -> tuple[list, list, list]:
    """(forward equations, backward equations, residuals) of a step there and back.

    What is computed from the loop's constants alone (`fixed`) is computed again on the way back:
    it is the same at every step, and the compiler takes it out of the loop.
    """
    late_variables, fixed = set(ct_variables), set(fixed)
    early, late = [], []
    for equation in jaxpr.eqns:
        reads = _reads(equation)
        if any(v in late_variables for v in reads):
            late_variables.update(equation.outvars)
            late.append(equation)
        else:
            if all(v in fixed for v in reads):
                fixed.update(equation.outvars)
            early.append(equation)

    live = {v: None for v in gradients if not isinstance(v, Literal)}  # a set that keeps its order
    needed = []
    again = [e for e in early if all(v in fixed for v in e.outvars)]
    for equation in reversed([*again, *late]):
        if any(v in live for v in equation.outvars):
            needed.append(equation)
            live.update(dict.fromkeys(_reads(equation)))
    at_hand = late_variables | fixed | slices
    return early, needed[::-1], [v for v in live if v not in at_hand]


def _run(equations: list, values: dict) -> None:
    for equation in equations:
        found = evaluate(equation, _read(values, equation.invars))
        values.update(zip(equation.outvars, found, strict=True))


def _read(values: dict, variables: Sequence) -> list:
    return [v.val if isinstance(v, Literal) else values[v] for v in variables]
