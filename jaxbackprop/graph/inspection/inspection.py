"""Look into a computation graph: every value, its gradient, and the line that they come from."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbackprop.graph.arguments import (
    check_function,
    check_scalar,
    is_one,
    only_arrays,
    places,
)
from jaxbackprop.graph.inspection import drawing, report
from jaxbackprop.graph.inspection.origin import Origin, origin
from jaxbackprop.graph.inspection.records import Record, records
from jaxbackprop.graph.inspection.steps import Graph, without_alarms
from jaxbackprop.graph.inspection.tracing import traced
from jaxbackprop.graph.inspection.unfold import unfold
from jaxbackprop.graph.names import NothingMatches, label, of_arguments, within
from jaxbackprop.graph.walk import backward


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """Every value of a function and its gradient, in the order that they were computed.

    `value` and `gradients` are what value_and_grad returns. Prints as a table. `inspection[7]` is
    record #7 in full, whatever is filtered, and `inspection["encoder/dense_1"]` what belongs to
    that scope or module; iterating gives the records that are left.
    """

    value: jax.Array
    gradients: Any
    records: tuple[Record, ...]
    shown: tuple[Record, ...]
    graph: Graph

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.shown)

    def __getitem__(self, which: int | str) -> "Record | Inspection":
        """Record #7 in full, or all that is of one scope, parameter or module.

        "encoder/dense_1", "layers[1]", or the name given by `checkpoint_name`; the innermost scopes
        alone are enough. Raises `NothingMatches`, a KeyError, which lists the nearest.
        """
        if not isinstance(which, str):
            return self.records[_place(which, len(self.records))]
        return self._matching("name", which, lambda r: within(which, r.names), lambda r: r.names)

    def named(self, text: str) -> "Inspection":
        """Only what has this text in a scope or in the path of a parameter that it reads."""
        _check_text("named", text)
        matches = lambda r: any(text in name for name in r.names)  # noqa: E731
        return self._matching("name", text, matches, lambda r: r.names)

    def lines(self, pattern: str) -> "Inspection":
        """Only what a line of this file has a part in: "model.py", or "model.py:12"."""
        _check_text("lines", pattern)
        file, _, number = pattern.partition(":")

        def matches(record: Record) -> bool:
            return any(
                line.file.endswith(file) and number in ("", str(line.number))
                for line in record.stack
            )

        own = lambda r: [str(line) for line in r.stack if line.is_users]  # noqa: E731
        return self._matching("line", pattern, matches, own)

    def _matching(
        self, kind: str, asked: str, matches: Callable, names: Callable[[Record], Iterable[str]]
    ) -> "Inspection":
        if not any(map(matches, self.records)):
            raise NothingMatches(kind, asked, (name for r in self.records for name in names(r)))
        return self._only(filter(matches, self.shown))

    def largest(self, n: int = 10) -> "Inspection":
        """Only the n largest gradients, by norm, largest first; NaN and Inf are largest of all."""

        def size(record: Record) -> float:
            norm = record.gradient_statistics.norm if record.gradient_statistics else 0.0
            return norm if np.isfinite(norm) else np.inf

        found = [r for r in self.shown if r.gradient is not None]
        return self._only(sorted(found, key=size, reverse=True)[:n])

    def vanishing(self, threshold: float = 1e-6) -> "Inspection":
        """Only gradients of which no entry is larger than the threshold."""

        def vanishes(record: Record) -> bool:
            found = record.gradient_statistics
            return found is not None and max(-found.min, found.max) <= threshold

        return self._only(r for r in self.shown if vanishes(r))

    def origin(self) -> Origin | None:
        """The first operation, forward or backward, that turned finite numbers into NaN or Inf.

        None where the result and all gradients that are known are finite.
        """
        with without_alarms():
            return origin(self.graph)

    def dot(self) -> str:
        """The graph in the DOT language, values forward and gradients backward."""
        return drawing.dot(self)

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart, values forward and gradients backward."""
        return drawing.mermaid(self)

    def draw(self) -> str:
        """The graph as SVG. Needs pygraphviz: `pip install "jaxbackprop[plot]"`."""
        return drawing.svg(self)

    def __repr__(self) -> str:
        return report.table(self)

    def _repr_html_(self) -> str:
        return report.html(self)

    def _only(self, shown: Iterable[Record]) -> "Inspection":
        return dataclasses.replace(self, shown=tuple(shown))


def inspect(f: Callable, argnums: int | Sequence[int] = 0) -> Callable[..., Inspection]:
    """A function with f's arguments that computes its gradient and keeps everything on the way.

    f returns a real scalar, and needs no change. By the floating leaves of args[argnums] it is
    differentiated; all else in them, as functions, integers, random keys or None, passes through,
    and has None in `gradients`. The operations run one by one on the values given, and every step
    of a loop apart, a `while` included: this is for looking, not for training. A long scan in a
    jitted function is compiled, once. Python may branch on a value, as in `if x > 0`; only what
    depends on the leaves is shown then. Behind an operation that has no rule a gradient is an
    `Unknown`, which says of which operation.

    Raises TypeError where nothing is left to differentiate by, where f does not return a real
    scalar, and under jit, where there are no values.
    """

    check_function(f)

    def inspected(*args: Any, **kwargs: Any) -> Inspection:
        _check_concrete((args, kwargs))
        chosen = places(argnums, [0.0 for _ in args])  # any leaf will do here
        names = of_arguments(f, args)
        paths, tree = jax.tree_util.tree_flatten_with_path(tuple(args[i] for i in chosen))
        moving = [_is_floating(leaf) for _, leaf in paths]
        _check_moving(moving, paths)
        leaves = [
            jnp.asarray(leaf) for (_, leaf), moves in zip(paths, moving, strict=True) if moves
        ]
        labels = tuple(
            label(names[chosen[path[0].idx]], path[1:])
            for (path, _), moves in zip(paths, moving, strict=True)
            if moves
        )

        def whole(given: Iterator) -> Any:
            """The chosen arguments with these in place of the floating leaves."""
            parts = zip(paths, moving, strict=True)
            return jax.tree.unflatten(tree, [next(given) if m else leaf for (_, leaf), m in parts])

        def of_leaves(*leaves: Any) -> Any:
            full = list(args)
            for i, argument in zip(chosen, whole(iter(leaves)), strict=True):
                full[i] = argument
            return only_arrays(f(*full, **kwargs))

        closed, shape = traced(of_leaves, leaves)
        check_scalar(shape)
        graph = _walk(closed, leaves, labels)._replace(constants=_constants(names, args, kwargs))
        found = iter(
            [
                jnp.zeros_like(x) if g is None else g
                for x, g in zip(leaves, graph.gradients, strict=True)
            ]
        )
        gradients = jax.tree.unflatten(tree, [next(found) if m else None for m in moving])
        gradients = gradients[0] if is_one(argnums) else gradients
        everything = records(graph)
        return Inspection(graph.tape.outputs[0], gradients, everything, everything, graph)

    return inspected


def _is_floating(leaf: Any) -> bool:
    """A number or an array of real numbers."""
    numbers = isinstance(leaf, float | np.ndarray | np.generic | jax.Array)
    return numbers and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _check_moving(moving: Sequence[bool], paths: Sequence) -> None:
    if not any(moving):
        kinds = {str(getattr(leaf, "dtype", type(leaf).__name__)) for _, leaf in paths}
        raise TypeError(
            "inspect requires real inputs (of a floating dtype) to differentiate by, but "
            f"the arguments hold {', '.join(sorted(kinds)) or 'no leaves'}: argnums= says which"
        )


def _walk(closed: Any, leaves: Sequence, labels: tuple[str, ...]) -> Graph:
    """Unfold the graph, walk back over it, and leave what the walk saw at each step."""

    def observe(node, cts, contributions):
        node.equation.cts, node.equation.contributions = tuple(cts), tuple(contributions)

    with without_alarms():
        steps, tape = unfold(closed.jaxpr, closed.consts, leaves)
        (result,) = tape.outputs
        seed = jnp.ones((), result.dtype) if tape.active_outputs[0] else None
        gradients = backward(tape, [seed], observe)
    return Graph(steps, tape, labels, tuple(gradients), {})


def _constants(names: list[str], args: tuple, kwargs: dict) -> dict[int, str]:
    """The names of the arrays among the arguments."""
    named = [*zip(names, args, strict=True), *kwargs.items()]
    return {
        id(leaf): label(name, path)
        for name, arg in named
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
    }


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} takes a text such as 'model.py:12', and this is {text!r}")


def _place(which: Any, count: int) -> Any:
    """The number of a record, or a slice of them; IndexError or TypeError for anything else."""
    if isinstance(which, slice):
        return which
    try:
        number = operator.index(which)
    except TypeError:
        raise TypeError(f"a value has a number or a name, and {which!r} is neither") from None
    if not -count <= number < count:
        raise IndexError(f"there is no value #{number}: the last is #{count - 1}")
    return number


def _check_concrete(arguments: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        raise TypeError(
            "inspect looks at values, and there are none under jit, grad, vmap or scan: "
            "call it outside of them"
        )
