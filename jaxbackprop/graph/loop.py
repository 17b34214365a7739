"""A scan walked back by a scan: last step first, and no more kept of a step than its walk reads.

A step is cut into its half ahead and its half back (`halves`): of each step the forward loop stores
the residuals, and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.eager import at_once
from jaxbackprop.graph.halves import dependence, halves, open_jaxpr
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import evaluate


@recorder("scan")
@at_once
def scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Cotangents of the carry go from step to step, those of the loop's constants are summed over
    the steps, those of the slices are stacked."""
    params = equation.params
    n_consts, n_carry = lengths(params)
    options = {"length": params["length"], "unroll": params["unroll"]}
    reverse = params["reverse"]
    consts, start, xs = parts(inputs, n_consts, n_carry)
    jaxpr, _ = open_jaxpr(params["jaxpr"])
    flags, out_flags = dependence(jaxpr, active, n_consts, n_carry)
    fixed, slices = range(n_consts), range(n_consts + n_carry, len(flags))
    try:
        step = halves(params["jaxpr"], flags, out_flags, (*fixed, *slices), fixed)
    except UnsupportedPrimitive as error:
        return evaluate(equation, inputs), refuse(error)

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
        places = []

        def back(state, slices):
            totals, ct_carry = state
            x, kept, ct_y = slices
            wanted = [ct for ct in (*ct_carry, *ct_y) if ct is not None]
            found = step.back([*consts, *x], kept, wanted)
            of_consts, of_carry, of_x = parts(found, n_consts, n_carry)
            totals = [g if t is None else t + g for t, g in zip(totals, of_consts, strict=True)]
            distinct, places[:] = once(of_x)
            return (totals, of_carry), distinct

        state, of_xs = lax.scan(
            back,
            (totals, cts[:n_carry]),
            (xs, residuals, cts[n_carry:]),
            reverse=not reverse,
            **options,
        )
        found = [*state[0], *state[1], *(of_xs[place] for place in places)]
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return [*end, *ys], pull


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
