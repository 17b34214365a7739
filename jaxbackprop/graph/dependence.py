"""What follows what: of a graph's inputs and outputs, those that want a gradient."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from jaxbackprop.graph.walk import following, is_flat, is_real

# The operations that call a graph, and what it is called among their parameters.
CALLS = dict.fromkeys(("jit", "pjit", "composite", "xla_metadata_call"), "jaxpr")
CALLS |= dict.fromkeys(("closed_call", "core_call", "eval_jaxpr"), "call_jaxpr")
CALLS |= {"custom_vmap_call": "call"}


def dependence(
    jaxpr: Any, active: Sequence[bool], n_consts: int = 0, n_carry: int = 0
) -> tuple[list[bool], list[bool]]:
    """Which inputs and outputs of the body of a loop, or of any graph, want a gradient.

    A carry does as soon as any step makes it depend on something that does: the smallest fixed
    point.
    """
    flags = [a and is_real(v.aval) for a, v in zip(active, jaxpr.invars, strict=True)]
    while True:
        wanted = {v for v, a in zip(jaxpr.invars, flags, strict=True) if a}
        for equation in jaxpr.eqns:
            own = [not isinstance(v, Literal) and v in wanted for v in equation.invars]
            if any(own) and not is_flat(equation):
                wanted.update(following(equation, own))
        outs = [not isinstance(v, Literal) and v in wanted for v in jaxpr.outvars]
        carry = [
            old or new for old, new in zip(flags[n_consts : n_consts + n_carry], outs, strict=False)
        ]
        grown = [*flags[:n_consts], *carry, *flags[n_consts + n_carry :]]
        if grown == flags:
            return flags, [*carry, *outs[n_carry:]]
        flags = grown


def open_jaxpr(inner: Any) -> tuple[Any, Sequence]:
    """(jaxpr, consts) of an inner graph, closed or not."""
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def asked_in_a_loop(
    jaxpr: Any, asked: Sequence[bool], flags: Sequence[bool], n_consts: int, n_carry: int
) -> list[bool]:
    """The outputs of a step that get a cotangent, if those in `asked` do: those also that carry it
    on from the steps behind."""
    asked, count = list(asked), len(flags)
    places = range(n_consts, n_consts + n_carry)
    alone = ([flags[i] and i == place for i in range(count)] for place in places)
    moves = [dependence(jaxpr, one)[1] for one in alone]
    while True:
        carry = [
            old or any(a and m for a, m in zip(asked, moved, strict=True))
            for old, moved in zip(asked, moves, strict=False)
        ]
        if carry == asked[:n_carry]:
            return asked
        asked[:n_carry] = carry


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
