"""jax's gradient, ours and differences side by side, and the first operation at which two part."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop import graph as wing
from jaxbackprop.check.arguments import Moving, moving
from jaxbackprop.check.compare import Comparison, compare
from jaxbackprop.check.contents import graphs_in
from jaxbackprop.check.gradients import check_gradients
from jaxbackprop.check.report import wrapped
from jaxbackprop.check.rules import Use, doubt, scalar
from jaxbackprop.check.traced import transformed
from jaxbackprop.check.visiting import Given, Place, has_rule, visit_graph
from jaxbackprop.graph.arguments import check_function
from jaxbackprop.graph.lines import where
from jaxbackprop.graph.mutable import make_jaxpr

TRANSFORMS = {"jax.grad": jax.grad, "jaxbackprop.grad": wing.grad}
OPERATIONS = 500  # looked at, the last of the forward pass first


@dataclasses.dataclass(frozen=True)
class Parting:
    """The operation, its line and scan steps, and whose gradient differs from the differences."""

    operation: str
    line: str
    steps: tuple[int, ...]
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        step = f", scan step {', '.join(map(str, self.steps))}" if self.steps else ""
        who = " and ".join(self.wrong)
        return f"they part at {self.operation} ({self.line}{step}): {who} against differences"


@dataclasses.dataclass(frozen=True)
class Walk:
    """Each gradient against differences, the two against each other, and where they part."""

    comparisons: tuple[tuple[str, Comparison], ...]
    refused: tuple[str, ...]
    parting: Parting | None

    @property
    def ok(self) -> bool:
        return all(comparison.ok for _, comparison in self.comparisons)

    def raise_if_failed(self) -> None:
        """Raises AssertionError with the report where two of the three differ."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        lines = []
        for name, comparison in self.comparisons:
            lines.append(f"{'ok ' if comparison.ok else 'BAD'} {name}")
            lines += [f"    {finding.text}" for finding in comparison.findings]
        lines += self.refused
        if not self.ok:
            lines.append(str(self.parting or "no single operation parts from its differences"))
        return wrapped([*lines, "passed" if self.ok else "FAILED"])

    def __repr__(self) -> str:
        return str(self)


def walk(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Walk]:
    """A function with f's arguments that holds jax.grad(f), our walk and differences together.

    Where two of them differ, the operations of this very call are gone through as the backward pass
    goes, the last first, each held against differences of its own: the first that parts is named.
    What our walk refuses is told, and does not count as wrong. Raises ValueError as
    `check_gradients` does.
    """

    check_function(f)

    def check(*args: Any) -> Walk:
        moves = moving(jax.tree.map(_as_jax_takes_it, args), argnums)
        of = lambda leaves: f(*moves.rebuild(leaves))  # noqa: E731
        found, refused = {}, []
        for name, transform in TRANSFORMS.items():
            try:
                gradient = transformed(transform, f, moves)
                found[name] = dict(zip(moves.names, gradient, strict=True))
            except NotImplementedError as error:
                refused.append(f"{name} refuses: {error}")
        values = dict(zip(moves.names, moves.leaves, strict=True))
        named = lambda values: of([values[name] for name in moves.names])  # noqa: E731
        comparisons = [
            (f"{name} against differences", check_gradients(named, values, gradient=gradient))
            for name, gradient in found.items()
        ]
        if len(found) == 2:
            comparisons.append(("jaxbackprop.grad against jax.grad", _pair(found, comparisons)))
        wrong = any(not comparison.ok for _, comparison in comparisons)
        return Walk(tuple(comparisons), tuple(refused), _parting(of, moves) if wrong else None)

    return check


def _as_jax_takes_it(leaf: Any) -> Any:
    """NumPy's numbers in jax's precision, which is float32 unless it is told otherwise."""
    is_real = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
    return jnp.asarray(leaf) if is_real else leaf


def _pair(found: dict[str, dict], comparisons: list[tuple[str, Comparison]]) -> Comparison:
    """The two against each other; where sums cancel, as close as the differences ask of each."""
    pair = compare(*found.values(), names=("jax.grad", "jaxbackprop.grad"), depth=30)
    leaves = [
        dataclasses.replace(leaf, bound=max(leaf.bound, asked.bound))
        for leaf, asked in zip(pair.leaves, comparisons[0][1].leaves, strict=True)
    ]
    return dataclasses.replace(pair, leaves=tuple(leaves))


def _parting(of: Callable, moves: Moving) -> Parting | None:
    """The first operation, as the backward pass goes, whose gradients differ from differences."""
    uses: list[Use] = []

    def visit(equation: Any, inputs: list[Given], place: Place) -> None:
        inside = any(map(has_rule, place.equations[:-1]))  # the function, not its rule
        if any(given.active for given in inputs) and not inside:
            uses.append(Use(equation, inputs, place))

    graph = make_jaxpr(lambda *leaves: of(leaves))(*moves.leaves)
    given = [Given(jnp.asarray(leaf), True) for leaf in moves.leaves]
    visit_graph(graph, given, visit, _is_operation, Place())
    for use in reversed(uses[-OPERATIONS:]):
        wrong = tuple(name for name, grad in TRANSFORMS.items() if _parts(use, grad))
        if wrong:
            name = use.equation.primitive.name
            return Parting(name, where(use.place.equations), use.place.steps, wrong)
    return None


def _is_operation(equation: Any) -> bool:
    """A rule, or an operation that is not made of others."""
    return has_rule(equation) or not graphs_in(equation) or "update_jaxpr" in equation.params


def _parts(use: Use, transform: Callable) -> bool:
    """Along random directions, and once more in full: a kink is no parting."""
    of, moved = scalar(use)
    if not moved:
        return False
    try:
        gradient = transform(of)(moved)
    except NotImplementedError:
        return False
    if not any(np.size(leaf) for leaf in jax.tree.leaves(moved)) or doubt(of, moved, gradient) <= 1:
        return False
    return not check_gradients(of, moved, gradient=gradient).ok
