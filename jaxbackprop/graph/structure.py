"""Operations that contain a graph: calls, loops, branches, and functions with rules of their own.

Each recorder evaluates its equation and returns the outputs with a function that pulls their
cotangents back, by walking the inner graph.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.walk import (
    STRUCTURE,
    Recorder,
    Tape,
    backward,
    evaluate,
    forward,
    is_real,
    zeros,
)


def recorder(*names: str) -> Callable[[Recorder], Recorder]:
    def enter(function: Recorder) -> Recorder:
        for name in names:
            STRUCTURE[name] = function
        return function

    return enter


def open_jaxpr(inner: Any) -> tuple[Any, Sequence]:
    """(jaxpr, consts) of an inner graph, closed or not."""
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def through(tape: Tape) -> tuple[list, Callable[[list], list]]:
    """The outputs of an inner tape, and its backward walk from the cotangents that matter."""

    def pull(cts):
        cts = [ct if a else None for ct, a in zip(cts, tape.active_outputs, strict=True)]
        return backward(tape, cts)

    return tape.outputs, pull


@recorder("jit", "pjit", "closed_call", "core_call", "custom_lin", "run_state")
def call(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A jitted function is looked into, not treated as one operation."""
    return through(forward(*open_jaxpr(equation.params["jaxpr"]), inputs, active))


@recorder("checkpoint", "remat2", "remat")
def remat(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Nothing is kept but the inputs: the inner forward pass is run again on the way back."""
    jaxpr, consts = open_jaxpr(equation.params["jaxpr"])

    def pull(cts):
        # Without the barrier the compiler would merge the second forward pass with the first.
        again = lax.optimization_barrier(inputs)
        return through(forward(jaxpr, consts, again, active))[1](cts)

    return evaluate(equation, inputs), pull


@recorder("custom_jvp_call")
def custom_jvp(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A function with a forward rule of its own: t ↦ J t, linear in t.

    Its graph is walked back from J t to t, at t = 0. The function itself is never walked: its rule
    may differ from its body, as relu's does at 0.
    """
    count = equation.params["num_consts"]
    flags = active[count:]
    zero = [equation.params["symbolic_zeros"] and not a for a in flags]
    jaxpr, consts, out_zeros = equation.params["jvp_jaxpr_fun"].call_wrapped(*zero)
    primals = inputs[count:]
    tangents = [_no_tangent(x) for x, z in zip(primals, zero, strict=True) if not z]
    wanted = [a for a, z in zip(flags, zero, strict=True) if not z]
    tape = forward(jaxpr, consts, [*primals, *tangents], [False] * len(primals) + wanted)
    outputs = tape.outputs[: len(out_zeros)]

    def pull(cts):
        linear = [ct for ct, z in zip(cts, out_zeros, strict=True) if not z]
        found = iter(through(tape)[1]([None] * len(out_zeros) + linear)[len(primals) :])
        return [None] * count + [None if z else next(found) for z in zero]

    return outputs, pull


def _no_tangent(x: Any) -> Any:
    """The zero of the tangents at x: of the type float0 where x is an integer."""
    return jnp.zeros_like(x) if is_real(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)


@recorder("custom_vjp_call")
def custom_vjp(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A function with a backward pass of its own: it is used as it is."""
    count = equation.params["num_consts"]
    flags = [bool(a) for a in active[count:]]
    jaxpr, consts = equation.params["fwd_jaxpr_thunk"].call_wrapped(*(not a for a in flags))
    _, _, forwarded = equation.params["out_trees"]()
    found = forward(jaxpr, consts, inputs[count:], [False] * len(flags)).outputs
    kept = len(found) - len(equation.outvars)
    own = iter(found[:kept])
    residuals = [next(own) if source is None else inputs[count:][source] for source in forwarded]
    outputs = found[kept:]

    def pull(cts):
        filled = [
            zeros(v.aval) if ct is None else ct for v, ct in zip(equation.outvars, cts, strict=True)
        ]
        contributions = equation.params["bwd"].call_wrapped(*residuals, *filled)
        if isinstance(contributions, tuple) and isinstance(contributions[0], list):
            contributions, _ = contributions  # jax 0.12 returns an auxiliary value besides
        return [None] * count + [
            c if a else None for c, a in zip(contributions, flags, strict=True)
        ]

    return outputs, pull


@recorder("while")
def while_loop(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Forward only: how many steps there were, and through what values, is not known."""

    def pull(cts):
        raise UnsupportedPrimitive(
            "a 'while' with a number of steps known only at run time has no reverse: "
            "use a scan or a fori_loop with static bounds"
        )

    return evaluate(equation, inputs), pull


@recorder("cond")
def cond(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The branch that was taken is taken again on the way back, from the same inputs."""
    which, operands, flags = inputs[0], inputs[1:], active[1:]

    def back(branch):
        jaxpr, consts = open_jaxpr(branch)

        def run(operands, cts):
            found = through(forward(jaxpr, consts, operands, flags))[1](cts)
            return [
                jnp.zeros_like(x) if g is None else g
                for x, g, a in zip(operands, found, flags, strict=True)
                if a
            ]

        return run

    def pull(cts):
        branches = [back(branch) for branch in equation.params["branches"]]
        index = jnp.asarray(which).astype(jnp.int32)
        found = iter(lax.switch(index, branches, operands, cts))
        return [None, *(next(found) if a else None for a in flags)]

    return evaluate(equation, inputs), pull


@recorder("custom_linear_solve")
def linear_solve(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """A x = b: to b the solution s of Aᵀ s = ct; to A what the walk of −A x gives it, from s."""
    lengths, graphs = equation.params["const_lengths"], equation.params["jaxprs"]
    ends = np.cumsum(list(lengths)).tolist()
    matvec, vecmat, solve, transpose_solve = (
        inputs[end - n : end] for n, end in zip(lengths, ends, strict=True)
    )
    transposed = {"const_lengths": lengths.transpose(), "jaxprs": graphs.transpose()}
    flags, b_flags = active[: lengths.matvec], active[ends[-1] :]
    x = evaluate(equation, inputs)

    def pull(cts):
        filled = [jnp.zeros_like(v) if ct is None else ct for v, ct in zip(x, cts, strict=True)]
        s = equation.primitive.bind(
            *vecmat, *matvec, *transpose_solve, *solve, *filled, **transposed
        )
        product = forward(*open_jaxpr(graphs.matvec), [*matvec, *x], [*flags, *(False for _ in x)])
        to_matrix = through(product)[1]([-v for v in s])[: lengths.matvec]
        between = [None] * (ends[-1] - lengths.matvec)
        return [*to_matrix, *between, *(v if a else None for v, a in zip(s, b_flags, strict=True))]

    return x, pull
