"""Outside of jit an operation that holds a graph is compiled, there and back, once.

Evaluated operation by operation, every call would trace its loops and branches anew, and compile
them anew.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from jaxbackprop.graph.dependence import dependence, open_jaxpr
from jaxbackprop.graph.halves import Halves, asked_of, halves, pulled, way_of_walking
from jaxbackprop.graph.walk import Recorder


def at_once(recorder: Recorder) -> Recorder:
    """As the recorder, compiled where the inputs are values."""

    @functools.wraps(recorder)
    def recorded(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
        key = _key(equation, inputs, active)
        if key is None:
            return recorder(equation, inputs, active)
        out_flags, parts = _compiled(*key)
        outputs, residuals = parts.ahead(inputs)
        return outputs, lambda cts: pulled(parts, inputs, residuals, asked_of(cts, out_flags), cts)

    return recorded


def _key(equation: Any, inputs: Sequence, active: Sequence) -> tuple | None:
    """What the compiled operation depends on; None where it is not compiled."""
    if any(isinstance(x, Tracer) for x in inputs):
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
    compiled = functools.cache(lambda asked: _jitted(parts.of(asked)))
    return out_flags, _jitted(parts)._replace(of=lambda asked: compiled(tuple(asked)))


def _jitted(parts: Halves) -> Halves:
    return parts._replace(ahead=jax.jit(parts.ahead), back=jax.jit(parts.back))
