"""Reductions by a function of one's own: the way back is the walk of a tree of its calls.

The calls are associative, in jax's terms: neighbours may be joined first, then pairs, and so on.
The initial value is joined once, as XLA does; where it is not neutral, jax.vjp joins it never, or
where the tree has a gap.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxbackprop.graph.halves import through
from jaxbackprop.graph.rules.windows import Windows
from jaxbackprop.graph.structure import recorder
from jaxbackprop.graph.walk import evaluate, forward


@recorder("reduce")
def reduce(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The axes that are reduced become the first one."""
    axes = equation.params["dimensions"]

    def rows(x: jax.Array, initial: jax.Array) -> jax.Array:
        kept = [n for d, n in enumerate(x.shape) if d not in axes]
        count = math.prod(x.shape[d] for d in axes)
        return jnp.moveaxis(x, axes, range(len(axes))).reshape(count, *kept)

    return _folded(equation, inputs, active, equation.params["jaxpr"], rows)


@recorder("reduce_window")
def reduce_window(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The places in a window become a first axis: each holds one number of every window."""
    windows = Windows(*(equation.params[name] for name in Windows._fields))
    shape = equation.outvars[0].aval.shape
    reducer = ClosedJaxpr(equation.params["jaxpr"], equation.params["consts"])

    def rows(x: jax.Array, initial: jax.Array) -> jax.Array:
        padded = windows.padded(x, initial)
        return jnp.stack(
            [
                lax.slice(padded, *corners, windows.window_strides)
                for corners in windows.places(shape)
            ]
        )

    return _folded(equation, inputs, active, reducer, rows)


def _folded(
    equation: Any, inputs: list, active: list[bool], reducer: Any, rows: Callable
) -> tuple[list, Callable]:
    """The outputs, and the walk of the tree over the rows. Nothing is kept but the inputs."""
    count = len(inputs) // 2

    def tree(*inputs: jax.Array) -> list[jax.Array]:
        xs, initials = inputs[:count], inputs[count:]
        leaves = [rows(x, i) for x, i in zip(xs, initials, strict=True)]
        return _fold(jaxpr_as_fun(reducer), leaves, initials)

    def pull(cts: list) -> list:
        graph = jax.make_jaxpr(tree)(*inputs)
        return through(forward(graph.jaxpr, graph.consts, inputs, active))[1](cts)

    return evaluate(equation, inputs), pull


def _fold(join: Callable, xs: Sequence[jax.Array], initials: Sequence[jax.Array]) -> list:
    shape = xs[0].shape[1:]

    def joined(left: Sequence, right: Sequence) -> list:
        flat = [x.ravel() for x in (*left, *right)]
        return [y.reshape(left[0].shape) for y in jax.vmap(join)(*flat)]

    xs = list(xs)
    while (n := xs[0].shape[0]) > 1:
        pairs = joined([x[: n - 1 : 2] for x in xs], [x[1::2] for x in xs])
        rest = n - n % 2  # of an odd number the last has no neighbour
        xs = [jnp.concatenate([y, x[rest:]]) for y, x in zip(pairs, xs, strict=True)]
    start = [jnp.broadcast_to(i, shape) for i in initials]
    return joined(start, [x[0] for x in xs]) if xs[0].shape[0] else start
