"""Ties between arrays, that XLA may not compute, keep or replace one of them before another.

XLA on CPU drops optimization barriers before its last search for common subexpressions and before
it decides which arrays of a loop need a copy. A number that it cannot know, and that is always 0,
holds where a barrier does not. `tie` is that number on a CPU and a barrier elsewhere.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Inexact, Int, Shaped


def after(done: Iterable[Array], index: Any) -> Any:
    """The index, once the arrays in `done` are there: a loop can then replace δ in place.

    Without it XLA would copy δ, which a turn reads for the gradients and replaces.
    """
    return index + sum(_zero(array) for array in done)


def held_back(delta: Float[Array, "*n"], array: Shaped[Array, "*a"]) -> Shaped[Array, "*a"]:
    """The array, once δ is there: what is computed from it is not what was computed before.

    Behind a barrier XLA would still find the first computation, keep that, and leave out the
    second.
    """
    return jnp.where(_zero(delta) == 0, array, jnp.zeros((), array.dtype))


def tie(delta: Inexact[Array, "*n"], array: Shaped[Array, "*a"]) -> Shaped[Array, "*a"]:
    """`held_back` on a CPU, an optimization barrier on other platforms; random keys are taken too.

    Nothing is tied where one of the two is empty.
    """
    if delta.size == 0 or array.size == 0:
        return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = tie(delta, jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return _tie.bind(delta, array)


def array_of_its_own(array: Shaped[Array, "*a"]) -> Shaped[Array, "*a"]:
    """The array, in memory: later readers find it there.

    XLA computes a sum again in each loop that reads it, and keeps the summands instead. It does not
    see through a loop of no turns.
    """
    plain = array.size and not jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return _own.bind(array) if plain else array


def _loop_of_no_turns(array: Array) -> Array:
    turns = _zero(array)
    other = jnp.logical_not if array.dtype == bool else jnp.negative
    return lax.while_loop(lambda s: s[0] < turns, lambda s: (s[0] + 1, other(s[1])), (0, array))[1]


def _zero(array: Array) -> Int[Array, ""]:
    """0, known only when the array is there: the least of 0 and a sign bit."""
    first = lax.slice(array, (0,) * array.ndim, (1,) * array.ndim).reshape(())
    below = jnp.signbit(first.real) if jnp.issubdtype(array.dtype, jnp.inexact) else first < 0
    return jnp.minimum(below.astype(int), 0)


_tie = Primitive("tie")
_tie.def_impl(lambda delta, array: array)
_tie.def_abstract_eval(lambda delta, array: array)
mlir.register_lowering(
    _tie,
    mlir.lower_fun(
        lambda delta, array: lax.optimization_barrier((delta, array))[1], multiple_results=False
    ),
)
mlir.register_lowering(_tie, mlir.lower_fun(held_back, multiple_results=False), platform="cpu")


def _over_examples(values: tuple, places: tuple) -> tuple:
    """Under vmap the whole batch of δ holds back the whole batch of the array."""
    return tie(*values), places[1]


batching.primitive_batchers[_tie] = _over_examples
ad.deflinear2(_tie, lambda ct, delta, array: [None, ct])


_own = Primitive("array_of_its_own")
_own.def_impl(lambda array: array)
_own.def_abstract_eval(lambda array: array)
mlir.register_lowering(
    _own, mlir.lower_fun(lambda array: lax.optimization_barrier(array), multiple_results=False)
)
mlir.register_lowering(
    _own, mlir.lower_fun(_loop_of_no_turns, multiple_results=False), platform="cpu"
)
batching.defvectorized(_own)
ad.deflinear2(_own, lambda ct, array: [ct])
