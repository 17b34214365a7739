"""A gradient against finite differences of the function that it belongs to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxbackprop import graph
from jaxbackprop.check.arguments import Moving, copied, matched, moving
from jaxbackprop.check.compare import Comparison
from jaxbackprop.check.function import flatten
from jaxbackprop.check.judging import judged
from jaxbackprop.check.leaves import Named, named
from jaxbackprop.check.notes import notes
from jaxbackprop.check.probing import Measured, measured
from jaxbackprop.check.progress import progress
from jaxbackprop.check.suspicions import broadcast_warnings, index_warnings, state_warnings
from jaxbackprop.check.traced import UNTRACEABLE, transformed
from jaxbackprop.graph.arguments import check_function

CALLED = "gradient: the function was called on f"
BEGINNING = ("the function", "the gradient")
NAMES = ("differences", "gradient")
TOLERANCE = "‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their error in each leaf"


def check_gradients(
    f: Callable[..., Any],
    *args: Any,
    gradient: Any = None,
    argnums: int | tuple[int, ...] = 0,
) -> Comparison:
    """Is `gradient` the gradient of the scalar function f at args?

    `gradient` is what is being checked: values with the structure of args[argnums] (of a tuple of
    them where argnums is one), or with its leaves' names; or a function of args that returns them;
    or `jax.grad` itself, which is called on f; by default jax's gradient of f, which runs the rules
    of every custom_vjp in f. `args` are pytrees of arrays of jax, NumPy or PyTorch, or modules of
    flax or equinox, and f need not be traceable by jax.

    The differences are taken in float64: on the graph of f, with its random numbers and what it
    stops held, or where jax cannot trace f on a float64 copy of all floating point arguments. They
    are taken at every number up to 2,000 in all and along random directions of each leaf beyond.
    A leaf is right where ‖Δ‖ ≤ max(40 eps, eps^⅔) ‖differences‖ + 3 × their own error, with eps of
    the argument's dtype. At a kink of f there is no gradient: what lies between the one-sided
    slopes is right. Slopes that do not settle are counted, and are neither right nor wrong.

    Raises ValueError where f is not scalar, real, finite and the same in all calls; where the
    argument is not real floating point; or, naming the leaf, where the gradient's structure, shapes
    or dtypes do not fit the argument's.
    """
    check_function(f)
    moves = moving(args, argnums)
    with progress([*BEGINNING, *moves.names]) as done:
        flat = flatten(f, moves)
        done()
        fewer, found = _candidate(f, moves, flat.graph is not None, gradient)
        done()
        if len(fewer.leaves) < len(moves.leaves):
            moves, flat = fewer, flatten(f, fewer)
        slopes = measured(flat, moves, done)
    said = (CALLED,) if _is_transform(gradient) else ()
    result = comparison(slopes, found, said)
    if flat.graph is None or result.ok:
        return result
    suspicions = (
        *broadcast_warnings(f, moves),
        *index_warnings(flat.graph, moves),
        *state_warnings(f, moves),
    )
    return dataclasses.replace(result, notes=(*result.notes, *suspicions))


def comparison(slopes: Measured, gradient: list[Named], said: tuple[str, ...] = ()) -> Comparison:
    """The gradient against the slopes of its function."""
    leaves = judged(slopes, gradient)
    return Comparison(tuple(leaves), NAMES, TOLERANCE, (*said, *notes(slopes, leaves)))


def _candidate(
    f: Callable, moves: Moving, traceable: bool, gradient: Any
) -> tuple[Moving, list[Named]]:
    """The gradient to check, and the leaves that it is by."""
    if gradient is None or _is_transform(gradient):
        return moves, _transformed(gradient or jax.grad, f, moves, traceable)
    is_function = callable(gradient) and jax.tree_util.treedef_is_leaf(jax.tree.structure(gradient))
    values = gradient(*moves.copies()) if is_function else gradient
    return matched(moves, values, given=not is_function)


def _transformed(transform: Callable, f: Callable, moves: Moving, traceable: bool) -> list[Named]:
    try:
        if traceable:
            found = transformed(transform, f, moves)
        else:
            of = transform(lambda leaves: f(*moves.rebuild(leaves)))
            found = of(list(map(copied, moves.leaves)))
    except UNTRACEABLE as error:
        raise ValueError("jax cannot trace f: `gradient` has to be given") from error
    pairs = zip(moves.names, found, strict=True)
    return [named(name, leaf, "the gradient") for name, leaf in pairs]


def _is_transform(gradient: Any) -> bool:
    """jax.grad, or ours: what makes a gradient of f, not a gradient."""
    return gradient in (jax.grad, graph.grad) if callable(gradient) else False
