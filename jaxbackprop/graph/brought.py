"""Operations that bring their own rule: another library's, and those of jax's higher-order kind.

Their rule is used as it is, as that of a custom_jvp or a custom_vjp. (The rules that jax has for
its own primitives are never asked for: `jaxbackprop.graph.rules` has those.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import hijax
from jax.interpreters import ad

from jaxbackprop.graph.custom import along_tangents, no_tangent
from jaxbackprop.graph.eager import at_once
from jaxbackprop.graph.halves import ON_TANGENTS
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import evaluate, is_real, zeros

Recorded = tuple[list, Callable]
# What a rule leaves a cotangent in; jax 0.10 has none.
VALUE: Any = getattr(hijax, "ValAccum", None)


@recorder("foreign")
@at_once
def foreign(equation: Any, inputs: list, active: list[bool]) -> Recorded:
    """A primitive of another library: by the rules that it told jax.

    The forward rule is walked back as custom_jvp's; where it applies a primitive to tangents, that
    is linear, and its library says how it is transposed.
    """
    primitive, params = equation.primitive, equation.params
    several = primitive.multiple_results
    transpose, along = (t.get(primitive) for t in (ad.primitive_transposes, ad.primitive_jvps))
    if ON_TANGENTS.get() and transpose is not None:

        def transposed(cts, args):
            return transpose(cts if several else cts[0], *args, **params)

        return _linear(transposed, ad.UndefinedPrimal, equation, inputs, active)
    if along is None:
        raise UnsupportedPrimitive(f"'{primitive.name}' has no rule for its tangents")

    def rule(primals, tangents):
        out, moved = along(primals, tangents, **params)
        return (out, moved) if several else ([out], [moved])

    return _by_tangents(rule, inputs, active)


@recorder("call_hi_primitive")
@at_once
def higher(equation: Any, inputs: list, active: list[bool]) -> Recorded:
    """A primitive of jax's higher-order kind is an object: it has its rules as methods."""
    made = equation.params["_prim"]
    unpack = made.in_tree.unflatten
    if not any(is_real(v.aval) for v in equation.outvars):
        return evaluate(equation, inputs), lambda cts: [None] * len(inputs)
    if ON_TANGENTS.get() and VALUE is not None:

        def transposed(cts, args):
            made.transpose(made.out_tree.unflatten(cts), *unpack(args))
            return [x.freeze() if isinstance(x, VALUE) else None for x in args]

        return _linear(transposed, VALUE, equation, inputs, active)
    if _is_own(made, "vjp_fwd") and _is_own(made, "vjp_bwd_retval"):
        return _by_cotangents(made, inputs, active)
    if not _has(made, "jvp"):
        raise UnsupportedPrimitive(f"'{type(made).__name__}' has no rule that returns its gradient")

    def rule(primals, tangents):
        out, moved = made.jvp(unpack(primals), unpack(tangents))
        return made.out_tree.flatten_up_to(out), made.out_tree.flatten_up_to(moved)

    return _by_tangents(rule, inputs, active)


def _by_tangents(rule: Callable, inputs: list, active: Sequence[bool]) -> Recorded:
    """By a rule (primals, tangents) ↦ (outputs, their tangents), in which those that are zero are
    marked by `ad.Zero`."""
    out_zeros = []

    def on_arrays(primals, moving):
        given = iter(moving)
        tangents = [
            next(given) if a else _zero(jax.typeof(x)) for x, a in zip(inputs, active, strict=True)
        ]
        outputs, moved = rule(tuple(primals), tuple(tangents))
        out_zeros[:] = [isinstance(t, ad.Zero) for t in moved]
        return list(outputs), [t for t in moved if not isinstance(t, ad.Zero)]

    moving = [no_tangent(x) for x, a in zip(inputs, active, strict=True) if a]
    graph = jax.make_jaxpr(on_arrays)(list(inputs), moving)
    zero = [not a for a in active]
    return along_tangents(graph.jaxpr, graph.consts, zero, out_zeros, inputs, active)


def _by_cotangents(made: Any, inputs: list, active: Sequence[bool]) -> Recorded:
    """By a pass ahead and a pass back, as custom_vjp's."""
    unpack = made.in_tree.unflatten
    found, residuals, *_ = made.vjp_fwd(unpack(active), *unpack(inputs))
    outputs = made.out_tree.flatten_up_to(found)

    def pull(cts):
        filled = [
            jnp.zeros_like(o) if ct is None else ct for o, ct in zip(outputs, cts, strict=True)
        ]
        back = made.in_tree.flatten_up_to(
            made.vjp_bwd_retval(residuals, made.out_tree.unflatten(filled))
        )
        return _wanted(back, active)

    return outputs, pull


def _linear(
    transposed: Callable, unknown: Callable, equation: Any, inputs: list, active: Sequence[bool]
) -> Recorded:
    """Of tangents, which are 0: so are the outputs, indices apart. `unknown` stands for an input
    that is one."""

    def pull(cts):
        args = [
            unknown(v.aval) if a else x
            for v, x, a in zip(equation.invars, inputs, active, strict=True)
        ]
        filled = [
            _zero(v.aval) if ct is None else ct for v, ct in zip(equation.outvars, cts, strict=True)
        ]
        return _wanted(transposed(filled, args), active)

    if all(is_real(v.aval) for v in equation.outvars):
        return [zeros(v.aval) for v in equation.outvars], pull
    found = zip(evaluate(equation, inputs), equation.outvars, strict=True)
    return [zeros(v.aval) if is_real(v.aval) else x for x, v in found], pull


def _wanted(found: Sequence, active: Sequence[bool]) -> list:
    return [
        None if isinstance(g, ad.Zero) or not a else g for g, a in zip(found, active, strict=True)
    ]


def _zero(aval: Any) -> ad.Zero:
    return ad.Zero(aval.to_tangent_aval())


def _has(made: Any, method: str) -> bool:
    """Does its class define the method? The base class of all only says that it is missing."""
    return getattr(type(made), method) is not getattr(_base(made), method)


def _is_own(made: Any, method: str) -> bool:
    """Is it written for this class, and not derived by jax from another of its rules?"""
    derives = _base(made).__module__
    return _has(made, method) and getattr(type(made), method).__module__ != derives


def _base(made: Any) -> type:
    *_, base = (c for c in type(made).__mro__ if hasattr(c, "expand"))
    return base
