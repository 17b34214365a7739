"""Outside of jit an operation that holds a graph is compiled, there and back, once.

Evaluated operation by operation, every call would trace its loops and branches anew, and compile
them anew.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import jaxprs_in_params

from jaxbackprop.graph.halves import Halves, dependence, halves, open_jaxpr, way_of_walking
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.rules.table import WITHOUT_ZEROS
from jaxbackprop.graph.walk import Recorder


def at_once(recorder: Recorder) -> Recorder:
    """As the recorder, compiled where the inputs are values. What cannot be compiled, because a
    part of it has no way back that perhaps nobody asks for, is left to the recorder."""

    @functools.wraps(recorder)
    def recorded(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
        key = _key(equation, inputs, active)
        if key is None:
            return recorder(equation, inputs, active)
        try:
            out_flags, parts = _compiled(*key)
        except UnsupportedPrimitive:
            return recorder(equation, inputs, active)
        outputs, residuals = parts.ahead(inputs)

        def pull(cts):
            cts = [
                jnp.zeros_like(out) if ct is None else ct
                for out, ct, flag in zip(outputs, cts, out_flags, strict=True)
                if flag
            ]
            return parts.back(inputs, residuals, cts)

        return outputs, pull

    return recorded


def _key(equation: Any, inputs: Sequence, active: Sequence) -> tuple | None:
    """What the compiled operation depends on; None where it is not compiled."""
    if any(isinstance(x, Tracer) for x in inputs) or _tells_zeros(equation):
        return None
    key = (
        equation.primitive,
        tuple(equation.params.items()),
        equation.ctx,
        tuple(jax.typeof(x) for x in inputs),
        tuple(active),
        way_of_walking(),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _tells_zeros(equation: Any) -> bool:
    """Is there a rule inside that is told of each cotangent that is zero? There are none here."""
    if equation.primitive.name in WITHOUT_ZEROS:
        return True
    if equation.primitive.name == "custom_vjp_call":
        return equation.params["symbolic_zeros"]
    inner = jaxprs_in_params(equation.params)
    return any(_tells_zeros(e) for jaxpr in inner for e in open_jaxpr(jaxpr)[0].eqns)


@functools.lru_cache(maxsize=1024)
def _compiled(
    primitive: Any, params: tuple, context: Any, types: tuple, active: tuple, _way: tuple
) -> tuple[list[bool], Halves]:
    def evaluated(*inputs):
        with context.manager:
            found = primitive.bind(*inputs, **primitive.get_bind_params(dict(params)))
            return list(found) if primitive.multiple_results else found

    graph = jax.make_jaxpr(evaluated)(*types)
    flags, out_flags = dependence(open_jaxpr(graph)[0], active)
    parts = halves(graph, flags, out_flags)
    return out_flags, parts._replace(ahead=jax.jit(parts.ahead), back=jax.jit(parts.back))
