"""Look into a computation graph: every value, its gradient, and the line that they come from."""

import dataclasses
import inspect as signatures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbackprop.graph.api import check_scalar, places
from jaxbackprop.graph.inspection import drawing, report
from jaxbackprop.graph.inspection.origin import Origin, origin
from jaxbackprop.graph.inspection.records import Record, records
from jaxbackprop.graph.inspection.unfold import Graph, unfold, without_alarms
from jaxbackprop.graph.lines import Line
from jaxbackprop.graph.walk import backward


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """Every value of a function and its gradient, in the order that they were computed.

    `value` and `gradients` are what value_and_grad returns. Prints as a table. `inspection[7]` is
    record #7 in full, whatever is filtered; iterating gives the records that are left.
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

    def __getitem__(self, number: int) -> Record:
        return self.records[number]

    def lines(self, pattern: str) -> "Inspection":
        """Only what a line of this file has a part in: "model.py", or "model.py:12"."""
        file, _, number = pattern.partition(":")

        def matches(line: Line) -> bool:
            return line.file.endswith(file) and number in ("", str(line.number))

        return self._only(r for r in self.shown if any(map(matches, r.stack)))

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

        None where everything is finite, but for masks of Inf that do no harm.
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

    f is as for :func:`jaxbackprop.grad`: it returns a scalar, and needs no change. The operations
    run one by one on the values given, and every step of a scan apart: this is for looking, not for
    training. Raises TypeError as `grad` does, and under jit, where there are no values.
    """

    def inspected(*args: Any, **kwargs: Any) -> Inspection:
        chosen = places(argnums, args)
        names = _names(f, args)
        primals = tuple(args[i] for i in chosen)
        _check_concrete((args, kwargs))

        def of_chosen(*primals):
            full = list(args)
            for i, primal in zip(chosen, primals, strict=True):
                full[i] = primal
            return f(*full, **kwargs)

        paths, tree = jax.tree_util.tree_flatten_with_path(primals)
        leaves = tuple(jnp.asarray(leaf) for _, leaf in paths)
        labels = tuple(_label(names[chosen[path[0].idx]], path[1:]) for path, _ in paths)
        jaxpr, shape = jax.make_jaxpr(
            lambda *leaves: of_chosen(*jax.tree.unflatten(tree, leaves)), return_shape=True
        )(*leaves)
        check_scalar(shape)
        graph = _walk(jaxpr, leaves, labels)._replace(constants=_constants(names, args, kwargs))
        gradients = [
            jnp.zeros_like(x) if g is None else g
            for x, g in zip(leaves, graph.gradients, strict=True)
        ]
        found = records(graph)
        gradients = jax.tree.unflatten(tree, gradients)
        gradients = gradients[0] if isinstance(argnums, int) else gradients
        return Inspection(graph.tape.outputs[0], gradients, found, found, graph)

    return inspected


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


def _names(f: Callable, args: tuple) -> list[str]:
    """What f calls its arguments, as far as it says."""
    try:
        bound = signatures.signature(f).bind(*args).arguments
    except (TypeError, ValueError):
        bound = {}
    names = [name for name, _ in zip(bound, args, strict=False)]
    return names + [f"argument {i}" for i in range(len(names), len(args))]


def _label(name: str, path: tuple) -> str:
    """params.Dense_0.kernel for params["Dense_0"]["kernel"]."""
    return ".".join([name, *(jax.tree_util.keystr((key,), simple=True) for key in path)])


def _constants(names: list[str], args: tuple, kwargs: dict) -> dict[int, str]:
    """The names of the arrays among the arguments."""
    named = [*zip(names, args, strict=True), *kwargs.items()]
    return {
        id(leaf): _label(name, path)
        for name, arg in named
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
    }


def _check_concrete(arguments: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        raise TypeError(
            "inspect looks at values, and there are none under jit, grad, vmap or scan: "
            "call it outside of them"
        )
