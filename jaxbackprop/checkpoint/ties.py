"""Ties between arrays, that XLA may not compute, keep or replace one of them before another.

XLA on CPU drops optimization barriers before its last search for common subexpressions and before
it decides which arrays of a loop need a copy. Two things hold where a barrier does not: a number
that it cannot know, and that is always 0, which is fused with what reads it (`tie`, on a CPU); and
a call that it is told not to look into, whose result is an array in memory
(`array_of_its_own`). Elsewhere both are barriers.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.xla_metadata import set_xla_metadata
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


def array_of_its_own(
    array: Shaped[Array, "*a"], done: Inexact[Array, "*n"] | None = None
) -> Shaped[Array, "*a"]:
    """The array, in memory: later readers find it there, and once `done` is there, if that is told.

    XLA computes a sum again in each loop that reads it, and keeps the summands instead. It does not
    see through a call that it is told to leave; of nothing but a barrier, that takes no time.
    """
    plain = array.size and not jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return _own.bind(array if done is None else done, array) if plain else array


@jax.jit
def _behind_a_barrier(done: Array, array: Array) -> Array:
    return lax.optimization_barrier((done, array))[1]


def _by_a_call(done: Array, array: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _behind_a_barrier(done, array)


def _in_order(done: Array, array: Array) -> Array:
    """On both sides of the call the last axis varies fastest.

    From jax 0.12 on XLA chooses the order of the axes in memory, for the result of a call too, and
    does not turn what the call was given: its readers would find each number in another's place.
    """

    def ordered(array: Array) -> Array:
        return with_layout_constraint(array, Layout(tuple(range(array.ndim))))

    return ordered(_by_a_call(done, ordered(array)))


def _in_a_row(done: Array, array: Array) -> Array:
    """The same where such a wish is refused: as a vector, which has one order."""
    row = array.reshape(-1)
    return _by_a_call(row if done is array else done, row).reshape(array.shape)


def _own_on_a_cpu(context: Any, done: Any, array: Any) -> Any:
    way = _by_a_call
    if context.avals_in[1].ndim > 1 and jax.__version_info__ >= (0, 11):
        exported = context.module_context.lowering_parameters.for_export
        way = _in_a_row if exported else _in_order
    return mlir.lower_fun(way, multiple_results=False)(context, done, array)


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
_own.def_impl(lambda done, array: array)
_own.def_abstract_eval(lambda done, array: array)
mlir.register_lowering(
    _own,
    mlir.lower_fun(
        lambda done, array: lax.optimization_barrier((done, array))[1], multiple_results=False
    ),
)
mlir.register_lowering(_own, _own_on_a_cpu, platform="cpu")
batching.primitive_batchers[_own] = lambda values, places: (_own.bind(*values), places[1])
ad.deflinear2(_own, lambda ct, done, array: [None, ct])
