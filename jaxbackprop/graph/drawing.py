"""The computation graph as a picture: values on the way forward, gradients on the way back.

Each node is a value with its formula, as v₂ = x + y, and its gradient, which is the sum over the
ways back. The ways back are dashed, each with its contribution. The DOT and Mermaid texts depend on
nothing; the drawn picture needs pygraphviz.
"""

import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxbackprop.graph import report
from jaxbackprop.graph.records import Record
from jaxbackprop.graph.unfold import Graph, Value

NODES = 120  # more are no picture
BACK = "#c0392b"
INFIX = {"add": "+", "add_any": "+", "sub": "−", "mul": "·", "div": "/", "dot_general": "@"}
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Node(NamedTuple):
    """What is written in a node: its formula, its value, its gradient or None."""

    number: int
    formula: str
    value: str
    gradient: str | None


class Picture(NamedTuple):
    """Nodes; edges from operand to value; and the ways back from value to operand, labelled."""

    nodes: list[Node]
    forward: list[tuple[int, int]]
    backward: list[tuple[int, int, str]]


def dot(graph: Graph, records: Sequence[Record]) -> str:
    """The picture in the DOT language."""
    picture = _picture(graph, records)
    lines = [
        "digraph {",
        '  graph [rankdir=LR, nodesep=0.35, ranksep=0.6, fontname="Helvetica"]',
        '  node [shape=box, style="rounded,filled", fillcolor="#f7f7f5", color="#555555", '
        'fontname="Helvetica", fontsize=13, margin="0.14,0.07"]',
        '  edge [fontname="Helvetica", fontsize=12, color="#333333", arrowsize=0.7]',
    ]
    for node in picture.nodes:
        rows = [f"<B>{html.escape(node.formula)}</B>", html.escape(node.value)]
        if node.gradient is not None:
            rows.append(f'<FONT COLOR="{BACK}">{html.escape(node.gradient)}</FONT>')
        lines.append(f"  n{node.number} [label=<{'<BR/>'.join(rows)}>]")
    lines += [f"  n{a} -> n{b}" for a, b in picture.forward]
    for a, b, label in picture.backward:
        style = f'dir=back, style=dashed, color="{BACK}", fontcolor="{BACK}"'
        lines.append(f'  n{b} -> n{a} [label=" {label} ", {style}]')
    return "\n".join([*lines, "}", ""])


def mermaid(graph: Graph, records: Sequence[Record]) -> str:
    """The picture as a Mermaid flowchart."""
    picture = _picture(graph, records)
    lines = ["flowchart LR"]
    for node in picture.nodes:
        rows = [part for part in node[1:] if part is not None]
        lines.append(f'  n{node.number}["{"<br/>".join(_quoted(part) for part in rows)}"]')
    lines += [f"  n{a} --> n{b}" for a, b in picture.forward]
    lines += [f'  n{a} -. "{_quoted(label)}" .-> n{b}' for a, b, label in picture.backward]
    if picture.backward:
        first = len(picture.forward)
        links = ",".join(str(first + i) for i in range(len(picture.backward)))
        lines.append(f"  linkStyle {links} stroke:{BACK},color:{BACK}")
    return "\n".join([*lines, ""])


def svg(graph: Graph, records: Sequence[Record]) -> str:
    """The picture as SVG. Raises ImportError without pygraphviz."""
    text = dot(graph, records)
    try:
        import pygraphviz
    except ImportError as error:
        message = 'drawing needs pygraphviz: pip install "jaxbackprop[plot]"'
        raise ImportError(message) from error
    drawn = pygraphviz.AGraph(string=text).draw(format="svg", prog="dot")
    return drawn.decode() if isinstance(drawn, bytes) else drawn


def _picture(graph: Graph, records: Sequence[Record]) -> Picture:
    if len(records) > NODES:
        raise ValueError(
            f"{len(records)} values are too many for a picture of at most {NODES}: "
            f"draw a filter of them, such as .lines(file) or .largest({NODES})"
        )
    produced = _produced(graph, records)
    names = {v: _name(graph, v, number) for v, number in produced.items()}
    shown = sorted(records, key=lambda record: record.number)
    nodes = [_node(graph, record, names) for record in shown]
    numbers = {record.number for record in shown}
    forward = [(a, b) for a, b in _edges(graph, shown, produced) if a in numbers]
    backward = [
        (path.through, record.number, report.size_of(path.gradient))
        for record in shown
        for path in record.paths
        if path.through in numbers
    ]
    return Picture(nodes, forward, backward)


def _produced(graph: Graph, records: Sequence[Record]) -> dict[Value, int]:
    """The number of the record of each value."""
    found = {v: number for number, v in enumerate(graph.tape.jaxpr.invars)}
    for record in records:
        found |= {step.outvars[k]: record.number for step, k in record.occurrences}
    return found


def _edges(
    graph: Graph, records: Sequence[Record], produced: dict[Value, int]
) -> Iterator[tuple[int, int]]:
    """From operand to value, once for each operand, straight through what a scan cuts and stacks."""
    hidden = {v: step for step in graph.steps if step.place.hidden for v in step.outvars}

    def sources(v: Value) -> list[int]:
        if v.source is not None:
            return sources(v.source)
        if v in produced:
            return [produced[v]]
        return [n for w in hidden[v].invars for n in sources(w)] if v in hidden else []

    for record in records:
        found = dict.fromkeys(
            (n, record.number, i)
            for step, _ in record.occurrences
            for i, v in enumerate(step.invars)
            for n in sources(v)
        )
        yield from ((a, b) for a, b, _ in found)


def _name(graph: Graph, v: Value, number: int) -> str:
    if v in graph.tape.jaxpr.outvars:
        return "f"
    inputs = len(graph.names)
    return graph.names[number] if number < inputs else "v" + str(number).translate(SUBSCRIPTS)


def _node(graph: Graph, record: Record, names: dict[Value, str]) -> Node:
    if record.occurrences:
        step, k = record.occurrences[0]
        name = names[step.outvars[k]]
        operands = [_operand(graph, v, names) for v in step.invars if not v.tangent]
        formula = f"{name} = {_formula(record.operation, operands)}"
    else:
        name = formula = graph.names[record.number]
    value = report.size_of(record.value)
    value = (
        value
        if record.value is not None and record.value.size == 1
        else (f"{report.shape(record)}  {value}")
    )
    if record.gradient is None:
        return Node(record.number, formula, value, None)
    terms = [report.size_of(path.gradient) for path in record.paths]
    total = report.size_of(record.gradient)
    single = record.gradient.size == 1 and 1 < len(terms) <= 4
    sum_ = f"{' + '.join(terms)} = {total}".replace("+ -", "− ") if single else total
    return Node(record.number, formula, value, f"∂f/∂{name} = {sum_}")


def _formula(operation: str, operands: list[str]) -> str:
    if operation in INFIX and len(operands) == 2:
        return f" {INFIX[operation]} ".join(operands)
    if operation == "neg":
        return f"−{operands[0]}"
    return f"{operation}({', '.join(operands)})"


def _operand(graph: Graph, v: Value, names: dict[Value, str]) -> str:
    while v.source is not None:
        v = v.source
    if v in names:
        return names[v]
    if np.size(v.array) == 1 and not hasattr(v.array, "keys"):
        return report.size_of(np.asarray(v.array))
    return graph.constants.get(id(v.array), "…")


def _quoted(text: str) -> str:
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
