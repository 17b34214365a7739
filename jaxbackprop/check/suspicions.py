"""What the graph of a function says of a gradient that fails: shapes, indices, what it reads."""

import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.lax import GatherScatterMode
from jax.tree_util import tree_leaves_with_path

from jaxbackprop.check.arguments import Moving, bits
from jaxbackprop.check.contents import graphs_in, made_of
from jaxbackprop.check.leaves import leaf_name
from jaxbackprop.check.visiting import Given, Place, visit_graph
from jaxbackprop.check.widened import CALLS
from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.lines import Line, where

SHAPE = re.compile(r"\(([\d, ]+)\)")


def reads(inner: Any) -> list[bool]:
    """Which inputs the outputs depend on; calls are looked into, other graphs read all."""
    jaxpr, _ = open_jaxpr(inner)
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        if not any(v in wanted for v in equation.outvars):
            continue
        used = [True] * len(equation.invars)
        if equation.primitive.name in CALLS and all(v in wanted for v in equation.outvars):
            used = reads(graphs_in(equation)[0])
        pairs = zip(equation.invars, used, strict=True)
        wanted |= {v for v, use in pairs if use and not isinstance(v, Literal)}
    return [v in wanted for v in jaxpr.invars]


def broadcast_warnings(f: Callable, moves: Moving) -> Iterator[str]:
    """(m,) with (m, 1) makes (m, m): a column against a row, seldom what was meant."""
    told = {}

    def hear(message: Any, *_: Any) -> None:
        shapes = [tuple(map(int, re.findall(r"\d+", s))) for s in SHAPE.findall(str(message))[:2]]
        column, row = sorted(shapes, key=len, reverse=True) if len(shapes) == 2 else ((), ())
        if len(row) == 1 and column == (*row, 1) and row[0] > 1:
            frames = traceback.extract_stack()[:-1]
            lines = [Line(f.filename, f.lineno or 0, f.name) for f in reversed(frames)]
            line = next((line for line in lines if line.is_users), "a line unknown")
            m = row[0]
            told[f"suspicious: f broadcasts ({m},) with ({m}, 1) to ({m}, {m}) at {line}"] = None

    with warnings.catch_warnings(), jax.numpy_rank_promotion("warn"):
        warnings.simplefilter("always")
        warnings.showwarning = hear
        jax.make_jaxpr(lambda *leaves: f(*moves.rebuild(leaves)))(*moves.leaves)
    yield from told


def state_warnings(f: Callable, moves: Moving) -> Iterator[str]:
    """A generator that counts its draws inside a module: the next call draws others."""
    args = moves.copies()
    before = _states(args)
    f(*args)
    for name, state in _states(args).items():
        if state != before[name]:
            yield (
                f"suspicious: f changes {name} of its arguments: the next call may draw other "
                "numbers, and a gradient taken at another call is another function's"
            )
            return


def _states(args: tuple) -> dict[str, bytes]:
    """Keys, and integers."""
    return {
        leaf_name(path): bits(leaf)
        for path, leaf in tree_leaves_with_path(args)
        if hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def index_warnings(graph: Any, moves: Moving) -> Iterator[str]:
    """x[5] of three numbers: jax takes the last one, and sends no gradient back to it."""
    if "gather" not in made_of(graph):
        return
    told = {}

    def visit(equation: Any, inputs: list[Given], place: Place) -> None:
        operand, starts = (np.asarray(given.array) for given in inputs)
        sizes, axes = equation.params["slice_sizes"], equation.params["dimension_numbers"]
        for k, axis in enumerate(axes.start_index_map):
            room = operand.shape[axis] - sizes[axis]
            if np.any((starts[..., k] < 0) | (starts[..., k] > room)):
                line = where(place.equations)
                told[
                    f"suspicious: f reads outside of an array of shape {operand.shape} at {line}: "
                    "jax takes the nearest entry, and sends no gradient back to it; NumPy raises"
                ] = None

    visit_graph(graph, [Given(leaf, True) for leaf in moves.leaves], visit, _promised, Place())
    yield from told


def _promised(equation: Any) -> bool:
    """An index that nobody looks at: of other kinds jax says what is outside."""
    mode = equation.params.get("mode")
    return equation.primitive.name == "gather" and mode is GatherScatterMode.PROMISE_IN_BOUNDS
