"""Functions with a gradient of their own: custom_jvp, custom_vjp and linear_call.

What such a function says of its gradient is used as it is; its body is not walked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxbackprop.graph.arguments import ARRAYS
from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.halves import ON_TANGENTS, on_tangents, through
from jaxbackprop.graph.mutable import pure
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import forward, is_real, zeros


@recorder("custom_jvp_call")
def custom_jvp(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A function with a forward rule of its own: t ↦ J t, linear in t.

    Its graph is walked back from J t to t, at t = 0. The function itself is never walked: its rule
    may differ from its body, as relu's does at 0. A rule may apply such functions to tangents, even
    the very one it belongs to: linear as these are there, their bodies are walked, as in jax.
    """
    if ON_TANGENTS.get():
        return through(forward(*open_jaxpr(equation.params["call_jaxpr"]), inputs, active))
    count = _constants(equation, active)
    primals, flags = inputs[count:], active[count:]
    outputs, pull = along_tangents(*jvp_graph(equation, flags), primals, flags)
    return outputs, lambda cts: [None] * count + pull(cts)


def along_tangents(
    jaxpr: Any,
    consts: Sequence,
    zero: Sequence[bool],
    out_zeros: Sequence[bool],
    primals: list,
    active: Sequence[bool],
) -> tuple[list, Callable]:
    """The walk of (primals, tangents) ↦ (outputs, their tangents), back from the latter to t = 0;
    `zero` and `out_zeros` are as in `jvp_graph`."""
    tangents = [no_tangent(x) for x, z in zip(primals, zero, strict=True) if not z]
    wanted = [a for a, z in zip(active, zero, strict=True) if not z]
    with on_tangents(True):
        tape = forward(jaxpr, consts, [*primals, *tangents], [False] * len(primals) + wanted)
    outputs = tape.outputs[: len(out_zeros)]

    def pull(cts):
        linear = [ct for ct, z in zip(cts, out_zeros, strict=True) if not z]
        with on_tangents(True):
            found = iter(through(tape)[1]([None] * len(out_zeros) + linear)[len(primals) :])
        return [None if z else next(found) for z in zero]

    return outputs, pull


def jvp_graph(
    equation: Any, active: Sequence[bool]
) -> tuple[Any, Sequence, list[bool], Sequence[bool]]:
    """(jaxpr, consts, zero, out_zeros) of (primals, tangents) ↦ (outputs, their tangents).

    Without a tangent are the inputs that `zero` marks, where the rule asked to be told so, and the
    outputs that `out_zeros` marks.
    """
    zero = [bool(equation.params["symbolic_zeros"] and not a) for a in active]
    jaxpr, consts, out_zeros = equation.params["jvp_jaxpr_fun"].call_wrapped(*zero)
    return *pure(jaxpr, consts), zero, out_zeros


def no_tangent(x: Any) -> Any:
    """The zero of the tangents at x: of the type float0 where x is an integer."""
    return jnp.zeros_like(x) if is_real(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)


@recorder("custom_vjp_call")
def custom_vjp(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A function with a backward pass of its own: it is used as it is.

    Its rules are told what is differentiated and which cotangents are zero, where they ask for it
    (`symbolic_zeros`). What they leave out, or mark as zero, is zero.
    """
    count = _constants(equation, active)
    params, primals, flags = equation.params, inputs[count:], [bool(a) for a in active[count:]]
    jaxpr, consts = pure(*params["fwd_jaxpr_thunk"].call_wrapped(*flags))
    _, _, forwarded = params["out_trees"]()
    found = forward(jaxpr, consts, primals, [False] * len(flags)).outputs
    kept = len(found) - len(equation.outvars)
    own = iter(found[:kept])
    residuals = [_indexable(next(own) if k is None else inputs[k]) for k in forwarded]

    def pull(cts):
        filled = [
            _no_cotangent(v.aval, params["symbolic_zeros"]) if ct is None else ct
            for v, ct in zip(equation.outvars, cts, strict=True)
        ]
        return [None] * count + _contributions(params["bwd"], residuals, filled, flags)

    return found[kept:], pull


def _indexable(x: Any) -> Any:
    """A constant of a graph may be NumPy's, which takes no index that is traced; a rule, as
    odeint's, counts on jax's."""
    is_numpys = isinstance(x, np.ndarray | np.generic) and x.dtype != jax.dtypes.float0
    return jnp.asarray(x) if is_numpys else x


def _contributions(bwd: Any, residuals: list, cts: list, wanted: Sequence[bool]) -> list:
    """What a rule of one's own gives; None for what it leaves out, or for what is not wanted."""
    found = bwd.call_wrapped(*residuals, *cts)
    if isinstance(found, tuple) and isinstance(found[0], list):
        found, _ = found  # jax 0.12 returns an auxiliary value besides
    return [c if w and isinstance(c, ARRAYS) else None for c, w in zip(found, wanted, strict=True)]


@recorder("custom_lin")
def custom_lin(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The tangents of a custom_vjp, which nobody can compute; but there is their way back.

    A rule of custom_jvp has them where it takes the jax.jvp of such a function. It is walked at
    t = 0, where they are 0.
    """
    params, count = equation.params, equation.params["num_res"]
    if not ON_TANGENTS.get() or any(active[:count]):
        raise UnsupportedPrimitive("a custom_vjp has no rule for jax.jvp: 'custom_lin'")
    moving = iter(active[count:])
    flags = [not z and bool(next(moving)) for z in params["in_zeros"]]

    def pull(cts):
        filled = [
            _no_cotangent(v.aval, params["symbolic_zeros"]) if ct is None else ct
            for v, ct in zip(equation.outvars, cts, strict=True)
        ]
        found = _contributions(params["bwd"], inputs[:count], filled, flags)
        given = [g for g, z in zip(found, params["in_zeros"], strict=True) if not z]
        return [None] * count + given

    return [zeros(v.aval) for v in equation.outvars], pull


# jax 0.12 takes every zero by its type, and fills it in for a rule that did not ask: under vmap
# an array of zeros would count as a cotangent that all rows share, which is refused.
TAKES_SYMBOLS = jax.__version_info__ >= (0, 12)


def _no_cotangent(aval: Any, symbolic: bool) -> Any:
    if symbolic or TAKES_SYMBOLS:
        return SymbolicZero(aval.to_tangent_aval())
    return zeros(aval) if is_real(aval) else np.zeros(aval.shape, jax.dtypes.float0)


def _constants(equation: Any, active: Sequence[bool]) -> int:
    """How many values a function closes over; its rule is silent about how they change it."""
    count = equation.params["num_consts"]
    if any(active[:count]):
        raise UnsupportedPrimitive(
            f"'{equation.primitive.name}' closes over a value that is differentiated, of which its "
            "rule says nothing: pass it to the function as an argument"
        )
    return count


@recorder("linear_call")
def linear_call(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A function that is linear in its last arguments, given with its transpose."""
    params = equation.params
    callee, n_consts, n_given = params["callee"], params["num_callee_consts"], params["num_res"]
    if any(active[: n_consts + n_given]):
        raise UnsupportedPrimitive(
            "'linear_call' is differentiated by one of its residual arguments, in which it says "
            "nothing of how it changes"
        )
    consts, given = inputs[:n_consts], inputs[n_consts : n_consts + n_given]
    outputs = equation.primitive.bind(*inputs, **params)

    def pull(cts):
        outs = zip(equation.outvars, cts, strict=True)
        transposed, t_consts = params["transpose_thunk"]()
        found = equation.primitive.bind(
            *t_consts,
            *given,
            *(zeros(v.aval) if ct is None else ct for v, ct in outs),
            callee=transposed,
            transpose_thunk=lambda: (callee, consts),
            num_callee_consts=len(t_consts),
            num_res=n_given,
        )
        return [None] * (n_consts + n_given) + [
            g if a else None for g, a in zip(found, active[n_consts + n_given :], strict=True)
        ]

    return list(outputs), pull
