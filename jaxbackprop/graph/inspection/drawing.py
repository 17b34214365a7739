"""The computation graph as a picture: values on the way forward, gradients on the way back.

Each node is a value with its formula, as v₂ = x + y, and its gradient, which is the sum over the
ways back. The ways back are dashed, each with its contribution. The DOT and Mermaid texts depend on
nothing; the drawn picture needs pygraphviz.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxbackprop.graph.inspection import report
from jaxbackprop.graph.inspection.records import Path, Record
from jaxbackprop.graph.inspection.steps import Graph, Value

NODES = 120  # more are no picture
BACK = "#c0392b"
INFIX = {"add": "+", "add_any": "+", "sub": "−", "mul": "·", "div": "/", "dot_general": "@"}
SHORT = {"broadcast_in_dim": "broadcast", "convert_element_type": "cast", "select_n": "select"}
SHORT |= {"logistic": "sigmoid"}
SHORT |= {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Name(NamedTuple):
    """The number of a value's record, and what formulas call it."""

    number: int
    text: str


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


def dot(inspection: Any) -> str:
    """The picture in the DOT language: from left to right, or downwards where it is long."""
    drawn = picture(inspection)
    direction = "LR" if len(drawn.nodes) <= 8 else "TB"
    lines = [
        "digraph {",
        f'  graph [rankdir={direction}, nodesep=0.4, ranksep=0.8, bgcolor="transparent"]',
        '  node [shape=box, style="rounded,filled", fillcolor="#f7f7f5", color="#777777", '
        'fontname="Helvetica", fontsize=13, margin="0.1,0.04"]',
        '  edge [fontname="Helvetica", fontsize=12, color="#333333", arrowsize=0.7]',
    ]
    for node in drawn.nodes:
        rows = [f"<B>{html.escape(node.formula)}</B>", html.escape(node.value)]
        if node.gradient is not None:
            rows.append(f'<FONT COLOR="{BACK}">{html.escape(node.gradient)}</FONT>')
        cells = "".join(f"<TR><TD>{row}</TD></TR>" for row in rows)
        table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{cells}</TABLE>'
        fill = ', fillcolor="#eaf1f8"' if node.number < len(inspection.graph.names) else ""
        lines.append(f"  n{node.number} [label=<{table}>{fill}]")
    lines += [f'  n{a} -> n{b} [label="    "]' for a, b in drawn.forward]
    for a, b, label in drawn.backward:
        style = f'dir=back, style=dashed, color="{BACK}", fontcolor="{BACK}"'
        lines.append(f'  n{b} -> n{a} [label=" {label} ", {style}]')
    return "\n".join([*lines, "}", ""])


def mermaid(inspection: Any) -> str:
    """The picture as a Mermaid flowchart."""
    drawn = picture(inspection)
    lines = ["flowchart LR"]
    for node in drawn.nodes:
        rows = [part for part in node[1:] if part is not None]
        lines.append(f'  n{node.number}["{"<br/>".join(_quoted(part) for part in rows)}"]')
    lines += [f"  n{a} --> n{b}" for a, b in drawn.forward]
    lines += [f'  n{a} -. "{_quoted(label)}" .-> n{b}' for a, b, label in drawn.backward]
    if drawn.backward:
        first = len(drawn.forward)
        links = ",".join(str(first + i) for i in range(len(drawn.backward)))
        lines.append(f"  linkStyle {links} stroke:{BACK},color:{BACK}")
    return "\n".join([*lines, ""])


def svg(inspection: Any) -> str:
    """The picture as SVG. Raises ImportError without pygraphviz."""
    text = dot(inspection)
    try:
        import pygraphviz
    except ImportError as error:
        message = 'drawing needs pygraphviz: pip install "jaxbackprop[plot]"'
        raise ImportError(message) from error
    laid_out: Any = pygraphviz.AGraph(string=text).draw(format="svg", prog="dot")
    return laid_out.decode()


def picture(inspection: Any) -> Picture:
    """What is drawn. Raises ValueError where there are too many values."""
    graph = inspection.graph
    shown = [record for record in inspection.shown if not _in_a_custom_function(record)]
    if len(shown) > NODES:
        raise ValueError(
            f"{len(shown)} values are too many for a picture of at most {NODES}: "
            f"draw a part of them, such as .lines(file) or .largest({NODES})"
        )
    shown.sort(key=lambda record: record.number)
    numbers = {record.number for record in shown}
    names = _names(graph, inspection.records)
    edges = dict.fromkeys(
        (name.number, record.number, i)
        for record in shown
        for step, _ in record.occurrences
        for i, operand in enumerate(step.operands)
        for name in _sources(names, operand)
    )
    forward = [(a, b) for a, b, _ in edges if a in numbers]
    backward = [
        (through, record.number, report.size_of(path.gradient))
        for record in shown
        for path in record.paths
        for through in _back_from(path, record, forward)
        if through in numbers
    ]
    return Picture([_node(graph, record, names) for record in shown], forward, backward)


def _back_from(path: Path, record: Record, forward: list[tuple[int, int]]) -> list[int]:
    """The value that a contribution comes back from; beyond what a scan cuts and stacks, too."""
    if path.through is not None or path.operation != "scan":
        return [] if path.through is None else [path.through]
    beyond = {b for a, b in forward if a == record.number}
    return sorted(beyond) if len(beyond) == 1 else []


def _in_a_custom_function(record: Record) -> bool:
    """The inside of relu has no gradients, and relu's own node stands for it."""
    around = [e for step, _ in record.occurrences[:1] for e in step.place.equations[:-1]]
    return any(e.primitive.name.startswith("custom_") for e in around)


def _names(graph: Graph, records: Sequence[Record]) -> dict[Value, list[Name]]:
    """What each value is called. The slices of a scan are called what they are cut from."""
    found = {}
    for number, (v, name) in enumerate(zip(graph.tape.jaxpr.invars, graph.names, strict=True)):
        found[v] = [Name(number, name)]
    numbers = {step.outvars[k]: r.number for r in records for step, k in r.occurrences}
    for step in graph.steps:
        for v in step.outvars:
            if v in graph.tape.jaxpr.outvars:
                found[v] = [Name(numbers[v], _result(graph))] if v in numbers else []
            elif v in numbers:
                found[v] = [Name(numbers[v], "v" + str(numbers[v]).translate(SUBSCRIPTS))]
            else:
                names = [name for operand in step.invars for name in _sources(found, operand)]
                found[v] = list(dict.fromkeys(names))
    return found


def _result(graph: Graph) -> str:
    """What the result is called: f, where no argument is."""
    return "result" if "f" in graph.names else "f"


def _sources(names: dict[Value, list[Name]], v: Value) -> list[Name]:
    return _sources(names, v.source) if v.source is not None else names.get(v, [])


def _node(graph: Graph, record: Record, names: dict[Value, list[Name]]) -> Node:
    name = formula = graph.names[record.number] if not record.occurrences else ""
    if record.occurrences:
        step, k = record.occurrences[0]
        name = names[step.outvars[k]][0].text
        operands = [_operand(graph, v, names) for v in step.operands if not v.tangent]
        formula = f"{name} = {_formula(record, step.equation.params, operands)}"
    value = report.size_of(record.value)
    if record.value is None or record.value.size > 1:
        value = f"{report.shape(record)}  {value}"
    known = None if record.gradient is None else _sum(record)
    gradient = "unknown" if record.unknown is not None else known
    gradient = None if gradient is None else f"∂{_result(graph)}/∂{name} = {gradient}"
    return Node(record.number, formula, value, gradient)


def _sum(record: Record) -> str:
    """Single numbers as the sum over the ways back; arrays by the norm of their sum."""
    terms = [report.size_of(path.gradient) for path in record.paths]
    total = report.size_of(record.gradient)
    if record.gradient is None or record.gradient.size > 1 or not 1 < len(terms) <= 4:
        return total
    return f"{' + '.join(terms)} = {total}".replace("+ -", "− ")


def _formula(record: Record, params: dict, operands: list[str]) -> str:
    operation = record.operation
    if operation in INFIX and len(operands) == 2:
        return f" {INFIX[operation]} ".join(operands)
    if operation == "neg":
        return f"−{operands[0]}"
    if operation in ("square", "integer_pow"):
        return operands[0] + str(params.get("y", 2)).translate(SUPERSCRIPTS)
    return f"{SHORT.get(operation, operation)}({', '.join(operands)})"


def _operand(graph: Graph, v: Value, names: dict[Value, list[Name]]) -> str:
    found = _sources(names, v)
    if found:
        return found[0].text if len(found) == 1 else "…"
    if report.is_number(v.array):
        return report.size_of(v.array)
    return graph.constants.get(id(v.array), "…")


def _quoted(text: str) -> str:
    """Mermaid's own entities."""
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
