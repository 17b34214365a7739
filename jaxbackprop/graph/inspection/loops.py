"""Loops on given values, laid out: their steps one after the other, as many as there are."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.dependence import dependence, lengths, parts
from jaxbackprop.graph.inspection.compiled import Form, template_of
from jaxbackprop.graph.inspection.filling import Filled
from jaxbackprop.graph.inspection.laying import enter, inside, lays_out
from jaxbackprop.graph.inspection.steps import HasNoTemplate, Log, Place, Value
from jaxbackprop.graph.loop import going_on
from jaxbackprop.graph.walk import is_real

LONG = 32  # steps: shorter loops are laid out before a template of their step is compiled


@lays_out("scan")
def scan(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The steps of a scan, one after the other."""
    if log.without_values:
        raise HasNoTemplate
    body, length = equation.params["jaxpr"], equation.params["length"]
    n_consts, n_carry = lengths(equation.params)
    consts, carry, xs = parts(inputs, n_consts, n_carry)
    carry = _carried(body, consts, carry, xs)
    form = _form(equation, [*consts, *carry, *xs], n_consts, n_carry)
    template = template_of(form) if length >= LONG and _is_kept(at) else None
    slices = [_slices(log, x, length, at._replace(hidden=True)) for x in xs]
    given = [[x[i] for x in slices] for i in range(length)]
    if template is not None:
        filled = Filled(form, template, (consts, carry, xs), given, at)
        log.steps.extend(step for i in filled.order for step in filled.steps[i])
        log.nodes.append(filled.node())
        carry, rows = filled.end, [filled.outputs[i][n_carry:] for i in range(length)]
    else:
        rows = [[] for _ in range(length)]
        for i in reversed(range(length)) if equation.params["reverse"] else range(length):
            here = at._replace(steps=(*at.steps, i))
            outputs = inside(log, body, [*consts, *carry, *given[i]], here)
            carry, rows[i] = outputs[:n_carry], outputs[n_carry:]
    if not rows:
        kinds = [v.aval for v in equation.outvars[n_carry:]]
        return [*carry, *(Value(jnp.zeros(kind.shape, kind.dtype)) for kind in kinds)]
    stacks = [_stack(log, ys, at._replace(hidden=True)) for ys in zip(*rows, strict=True)]
    return [*carry, *stacks]


def _form(equation: Any, inputs: list[Value], n_consts: int, n_carry: int) -> Form:
    body, length, reverse = (equation.params[name] for name in ("jaxpr", "length", "reverse"))
    kinds = tuple((v.active, v.tangent) for v in inputs)
    return Form(body, n_consts, n_carry, length, reverse, kinds, tuple(body.in_avals))


def _is_kept(at: Place) -> bool:
    """Inside a jitted function jax keeps the loop's step from call to call, and with it what is
    compiled for it; elsewhere each call may trace a new one."""
    return any(equation.primitive.name in ("jit", "pjit") for equation in at.equations)


@lays_out("while")
def while_loop(log: Log, equation: Any, inputs: list[Value], at: Place) -> list[Value]:
    """The steps of a loop until its condition fails: the values say how many there are."""
    if log.without_values:
        raise HasNoTemplate
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    n_condition, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_condition, consts, carry = parts(inputs, n_condition, n_body)
    carry = _carried(body, consts, carry, [])
    i = 0
    while True:
        here = at._replace(steps=(*at.steps, i))
        (goes_on,) = inside(log, condition, [*of_condition, *carry], here)
        if not np.any(goes_on.array):
            return carry
        after = inside(log, body, [*consts, *carry], here)
        if np.ndim(goes_on.array):  # under vmap, where each example has its own number of steps
            select = jax.make_jaxpr(going_on)(
                goes_on.array, *([v.array for v in vs] for vs in (after, carry))
            )
            after = inside(log, select, [goes_on, *after, *carry], here._replace(hidden=True))
        carry, i = after, i + 1


def _carried(body: Any, consts: list[Value], carry: list[Value], xs: list[Value]) -> list[Value]:
    """What depends on the inputs in any step of a loop has a gradient in all of them."""
    active = [v.active for v in (*consts, *carry, *xs)]
    flags, _ = dependence(getattr(body, "jaxpr", body), active, len(consts), len(carry))
    return [
        v if v.active else Value(v.array, flag, source=v)
        for v, flag in zip(carry, flags[len(consts) :], strict=False)
    ]


def _slices(log: Log, x: Value, length: int, at: Place) -> list[Value]:
    """x ↦ x₀, x₁, … In NumPy: jax would compile each slice by itself."""
    if not is_real(x.array):
        return [Value(x.array[i]) for i in range(length)]

    def pull(cts):
        zero = np.zeros(x.array.shape[1:], x.array.dtype)
        return [jnp.asarray(np.stack([zero if ct is None else np.asarray(ct) for ct in cts]))]

    rows = [Value(jnp.asarray(row), x.active) for row in np.asarray(x.array)]
    return enter(log, at, [x], rows, pull) if length else []


def _stack(log: Log, ys: Sequence[Value], at: Place) -> Value:
    """y₀, y₁, … ↦ y."""
    if not is_real(ys[0].array):
        return Value(jnp.stack([y.array for y in ys]))

    def pull(cts):
        rows = np.asarray(cts[0])
        return [jnp.asarray(row) if y.active else None for y, row in zip(ys, rows, strict=True)]

    stacked = jnp.asarray(np.stack([np.asarray(y.array) for y in ys]))
    return enter(log, at, list(ys), [Value(stacked, any(y.active for y in ys))], pull)[0]
