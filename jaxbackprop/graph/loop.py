"""A scan walked back by a scan: last step first, and no more kept of a step than its walk reads.

A step is cut into its half ahead and its half back (`halves`): of each step the forward loop stores
the residuals, and nothing else.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.dependence import asked_in_a_loop, dependence, lengths, open_jaxpr, parts
from jaxbackprop.graph.eager import at_once
from jaxbackprop.graph.halves import Halves, asked_of, halves
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder


def following_outputs(equation: Any, active: list[bool]) -> list[bool]:
    """The outputs of a scan that depend on an active input, at whatever step."""
    return dependence(open_jaxpr(equation.params["jaxpr"])[0], active, *lengths(equation.params))[1]


@recorder("scan", follows=following_outputs)
@at_once
def scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Cotangents of the carry go from step to step, those of the loop's constants are summed over
    the steps, those of the slices are stacked."""
    params = equation.params
    n_consts, n_carry = lengths(params)
    options = {name: params[name] for name in ("length", "unroll", "reverse")}
    consts, start, xs = parts(inputs, n_consts, n_carry)
    jaxpr, _ = open_jaxpr(params["jaxpr"])
    flags, out_flags = dependence(jaxpr, active, n_consts, n_carry)
    fixed, slices = range(n_consts), range(n_consts + n_carry, len(flags))
    step = halves(params["jaxpr"], flags, out_flags, (*fixed, *slices), fixed)

    def along(step):
        def ahead(carry, x):
            outputs, residuals = step.ahead([*consts, *carry, *x])
            return outputs[:n_carry], (outputs[n_carry:], residuals)

        return lax.scan(ahead, start, xs, **options)

    end, (ys, residuals) = along(step)

    def pull(cts):
        asked = asked_of(cts, out_flags)
        if asked != out_flags:
            asked = asked_in_a_loop(jaxpr, asked, flags, n_consts, n_carry)
        if not any(asked):
            return [None] * len(inputs)
        way = step.of(asked)
        kept = [*residuals, *(along(way)[1][1] if way.residuals else ())]
        cts = [
            (jnp.zeros_like(out) if ct is None else ct) if a else None
            for ct, out, a in zip(cts, [*end, *ys], asked, strict=True)
        ]
        found = _back(way, (consts, xs), kept, parts(cts, 0, n_carry)[1:], options)
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return [*end, *ys], pull


def _back(way: Halves, at_hand: tuple, kept: list, cts: tuple, options: dict) -> list:
    """The cotangents of constants, carry and slices, None where there is none."""
    (consts, xs), (ct_end, ct_ys) = at_hand, cts
    n_consts, n_carry = len(consts), len(ct_end)
    totals = [jnp.zeros_like(x) if a else None for x, a in zip(consts, way.reached, strict=False)]
    places = []

    def back(state, slices):
        totals, ct_carry = state
        x, kept, ct_y = slices
        given = [ct for ct in (*ct_carry, *ct_y) if ct is not None]
        of_consts, of_carry, of_x = parts(way.back([*consts, *x], kept, given), n_consts, n_carry)
        totals = [g if t is None else t + g for t, g in zip(totals, of_consts, strict=True)]
        carry = [
            jnp.zeros_like(ct) if g is None and ct is not None else g
            for g, ct in zip(of_carry, ct_carry, strict=True)
        ]
        distinct, places[:] = once(of_x)
        return (totals, carry), distinct

    options = options | {"reverse": not options["reverse"]}
    (totals, ct_start), of_xs = lax.scan(back, (totals, ct_end), (xs, kept, ct_ys), **options)
    return [*totals, *ct_start, *(of_xs[place] for place in places)]


def once(values: Sequence) -> tuple[list, list[int]]:
    """The distinct values, and the place of each among them: what is the same is stacked once."""
    distinct = {id(value): value for value in values}
    order = list(distinct)
    return list(distinct.values()), [order.index(id(value)) for value in values]


def refuse(error: UnsupportedPrimitive) -> Callable:
    """The way back of an operation that has values, but no gradient."""

    def pull(cts):
        raise error

    return pull


def going_on(more: Any, turned: Any, state: Any) -> Any:
    """Under vmap a loop asks each row whether it goes on: one that does not stays as it is."""
    if not jnp.ndim(more):
        return turned
    rows = partial(lax.broadcast_in_dim, more, broadcast_dimensions=range(jnp.ndim(more)))
    return jax.tree.map(lambda new, old: jnp.where(rows(shape=new.shape), new, old), turned, state)
