"""Part 2: the graph of an expression, its values going forward and its gradients coming back."""

import functools
import re
from typing import NamedTuple

import jax.numpy as jnp

from explorer_parts import diagrams, writing
from explorer_parts.diagrams import Edge, Line, Node
from explorer_parts.expressions import Expression, parse
from jaxbackprop import Inspection, inspect
from jaxbackprop.graph.inspection import drawing


@functools.lru_cache(maxsize=256)
def inspection(text: str, values: tuple[float, ...]) -> tuple[Expression, Inspection]:
    """The expression, and what `inspect` sees of it at these values."""
    expression = parse(text)
    numbers = tuple(range(len(expression.names)))
    found = inspect(expression.function, argnums=numbers)(*map(jnp.float32, values))
    return expression, found


class Schedule(NamedTuple):
    """The step at which each value is known, and at which its gradient is; and the last step."""

    seen: dict[int, int]
    back: dict[int, int]
    last: int


@functools.lru_cache(maxsize=64)
def schedule(text: str) -> Schedule:
    """Forward in the order of the graph, then backward: the values do not matter to it."""
    names = parse(text).names
    found = inspection(text, (1.0,) * len(names))[1]
    order = [record.number for record in found]
    seen = {number: step for step, number in enumerate(order, start=1)}
    met = [record.number for record in reversed(found.records) if record.gradient is not None]
    back = {number: step for step, number in enumerate(met, start=len(order) + 1)}
    return Schedule(seen, back, len(order) + len(met))


def figure(text: str, values: tuple[float, ...], step: int) -> str:
    """The graph after so many steps."""
    expression, found = inspection(text, values)
    seen, back, _ = schedule(text)
    inputs = len(expression.names)
    picture = drawing.picture(found)
    nodes = []
    for node in picture.nodes:
        formula = _signed(_named(node.formula, inputs))
        lines = [
            Line(formula, formula),
            Line(f"value {node.number}", _signed(node.value), seen[node.number]),
        ]
        if node.number in back and node.gradient:
            written = _signed(_named(node.gradient, inputs))
            lines.append(Line(written.split(" = ")[0], written, back[node.number], True))
        nodes.append(Node(str(node.number), tuple(lines)))
    brought = [list(each) for each in picture.backward]
    edges = []
    for tail, head in picture.forward:
        # A contribution shows with the gradient of its receiver, which sums it.
        pairs = [each for each in brought if each[:2] == [head, tail]]
        if pairs and tail in back:
            brought.remove(pairs[0])
            line = Line(f"{head} to {tail}", _signed(str(pairs[0][2])), back[tail], True)
            edges.append(Edge(str(tail), str(head), (line,), back[tail]))
        else:
            edges.append(Edge(str(tail), str(head)))
    result = writing.number(float(found.value))
    label = f"Computation graph of {text}; result {result}, step {step}"
    return diagrams.figure("flow", label, nodes, edges, step)


def _named(text: str, inputs: int) -> str:
    """The drawing counts its values from the inputs on; the text's first intermediate is v₁."""

    def counted(found: re.Match) -> str:
        number = int(found[1].translate(_DIGITS)) - inputs + 1
        return "v" + str(number).translate(drawing.SUBSCRIPTS)

    return re.sub("v([₀-₉]+)", counted, text)


_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def _signed(text: str) -> str:
    """A real minus, and no −0."""
    return re.sub(r"−0(?![.\d])", "0", text.replace("-", "−")).replace("inf", "∞")


def contributions(text: str, values: tuple[float, ...]) -> list[tuple[str, list[float], float]]:
    """For each variable: its name, what each path back brings, and their sum."""
    expression, found = inspection(text, values)
    return [
        (
            name,
            [float(path.gradient) for path in record.paths],
            0.0 if record.gradient is None else float(record.gradient),
        )
        for record, name in zip(found.records, expression.names, strict=False)
    ]


def table(text: str, values: tuple[float, ...], step: int) -> str:
    """The variables' gradients, as far as the step has come."""
    back = schedule(text).back
    rows = []
    for number, (name, brought, total) in enumerate(contributions(text, values)):
        known = step >= back.get(number, 0)
        terms = " + ".join(map(writing.number, brought)).replace("+ −", "− ") or "no path"
        rows.append((f"∂f/∂{name}", *((terms, writing.number(total)) if known else ("", "?"))))
    return writing.table("flow", rows, ("gradient", "what each path brings", "sum"))
