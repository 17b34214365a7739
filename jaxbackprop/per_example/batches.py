"""A batch of examples: how many there are, and a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr, tree_leaves_with_path


def count(batch: Any, axis: int = 0) -> int:
    """m, the length of every leaf's axis of examples; ValueError where there is no one such m."""
    found = {}
    for path, leaf in tree_leaves_with_path(batch):
        shape = jnp.shape(leaf)
        if len(shape) <= axis:
            raise ValueError(
                f"batch{keystr(path)} has the shape {shape}: every leaf of a batch has an axis of "
                "examples"
            )
        found.setdefault(shape[axis], keystr(path))
    if not found:
        raise ValueError("the batch has no arrays, so there is no telling how many examples it has")
    if len(found) > 1:
        counts = " and ".join(f"{m} in batch{path}" for m, path in found.items())
        raise ValueError(f"the leaves of the batch differ in their number of examples: {counts}")
    (m,) = found
    if m == 0:
        raise ValueError("the batch has 0 examples, and nothing is the mean of none")
    return m


def in_turns(
    function: Callable[[Any, int], tuple[Any, Any]],
    batch: Any,
    m: int,
    microbatch: int | None,
    axis: int = 0,
) -> tuple[Any, Any]:
    """function(batch, m) -> (sums, rows), by a scan over microbatches if asked for.

    The sums of the turns are summed, their rows, which have a first axis of examples, joined.
    Raises ValueError for a microbatch that is no positive number of examples.
    """
    if microbatch is None:
        return function(batch, m)
    if isinstance(microbatch, bool) or not isinstance(microbatch, int) or microbatch < 1:
        raise ValueError(f"microbatch is {microbatch!r}, expected a positive number of examples")
    turns, rest = divmod(m, microbatch)
    if turns == 0 or (turns == 1 and not rest):
        return function(batch, m)

    def part(start, size):
        cut = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis), batch)
        return function(cut, size)

    def add(sums, turn):
        more, rows = part(turn * microbatch, microbatch)
        return jax.tree.map(jnp.add, sums, more), rows

    types = jax.eval_shape(lambda: part(0, microbatch)[0])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), types)
    sums, rows = lax.scan(add, zero, jnp.arange(turns))
    rows = jax.tree.map(lambda x: x.reshape(turns * microbatch, *x.shape[2:]), rows)
    if rest:
        more, last = part(turns * microbatch, rest)
        sums = jax.tree.map(jnp.add, sums, more)
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, last)
    return sums, rows
