"""Ties between arrays, that XLA may not compute, keep or replace one of them before another.

XLA on CPU drops optimization barriers before its last search for common subexpressions and before
it decides which arrays of a loop need a copy. A number that it cannot know, and that is always 0,
holds where a barrier does not.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def after(done: Iterable[Array], index: Any) -> Any:
    """The index, once the arrays in `done` are there: a loop can then replace δ in place.

    Without it XLA would copy δ, which a turn reads for the gradients and replaces.
    """
    return index + sum(_zero(array) for array in done)


def held_back(delta: Float[Array, "n m"], array: Float[Array, "a b"]) -> Float[Array, "a b"]:
    """The array, once δ is there: what is computed from it is not what was computed before.

    Behind a barrier XLA would still find the first computation, keep that, and leave out the
    second.
    """
    return jnp.where(_zero(delta) == 0, array, 0)


def _zero(array: Array) -> Int[Array, ""]:
    """0, known only when the array is there: the least of 0 and a sign bit."""
    return jnp.minimum(jnp.signbit(array[0, 0]).astype(int), 0)
