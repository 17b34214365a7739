"""A repair as the text of the user's own line: the call found, its arguments put in.

Works on the code as Python parses it, and never runs any of it.
"""

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxbackprop.graph.lines import Expression

SIGNS: dict[type, str] = {ast.Div: "/", ast.Pow: "**"}
BINDING = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Call(NamedTuple):
    """What the user calls, and with what: "sqrt", or "/"; the array that it is a method of; of a
    logarithm, what it is taken of."""

    name: str
    arguments: list[ast.expr]
    keywords: list[ast.keyword]
    owner: ast.expr | None = None
    inner: "Call | None" = None


class Bound(NamedTuple):
    """The arguments of a user's call by the parameters of a repair, and its options as values."""

    arguments: dict[str, ast.expr]
    keywords: list[ast.keyword]
    options: dict[str, Any]


def user_call(expression: Expression) -> Call | None:
    """The call that the expression is; None where it is no call, or cannot be read."""
    try:
        node = ast.parse(f"({expression.text})", mode="eval").body
    except SyntaxError:
        return None
    call = _call(node, expression.file)
    if call is None or len(call.arguments) != 1 or call.name != "log":
        return call
    (argument,) = call.arguments
    inner = _assigned(argument.id, expression) if isinstance(argument, ast.Name) else argument
    return call._replace(inner=_call(inner, expression.file))


def _call(node: ast.expr | None, file: str) -> Call | None:
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        return Call(SIGNS[type(node.op)], [node.left, node.right], [])
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        owner = None if _is_module(node.func.value, file) else node.func.value
        return Call(node.func.attr, node.args, node.keywords, owner)
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    return Call(name, node.args, node.keywords)


def _is_module(owner: ast.expr, file: str) -> bool:
    """jnp, jax.nn: does it begin with a name that the file imports, or gives no value to? (The cell
    of a notebook is a file, and what it names was imported by another.)"""
    root = next(node for node in ast.walk(owner) if not isinstance(node, ast.Attribute))
    if not isinstance(root, ast.Name):
        return False
    nodes = list(ast.walk(_tree(file, tuple(linecache.getlines(file)))))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {a.asname or a.name.partition(".")[0] for node in imports for a in node.names}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and _is_stored(node)}
    stored |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return root.id in imported or root.id not in stored


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _assigned(name: str, expression: Expression) -> ast.expr | None:
    """What the name was set to last, before the expression, in the same function."""
    tree = _tree(expression.file, tuple(linecache.getlines(expression.file)))
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.lineno <= expression.first <= (node.end_lineno or 0)
    ]
    if not around:
        return None
    assignments = [
        node
        for node in ast.walk(max(around, key=lambda node: node.lineno))
        if isinstance(node, ast.Assign)
        and node.lineno < expression.first
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
    return max(assignments, key=lambda node: node.lineno).value if assignments else None


@functools.lru_cache(maxsize=32)
def _tree(file: str, lines: tuple[str, ...]) -> ast.Module:
    try:
        return ast.parse("".join(lines))
    except SyntaxError:
        return ast.Module([], [])


def bind(remedy: Any, call: Call) -> Bound | None:
    """The parameters of a repair as this call gives them; None where it is another call."""
    if call.inner is not None and f"{call.name}({call.inner.name})" in remedy.calls:
        call = call.inner
    elif call.name not in remedy.calls:
        return None
    if call.owner is not None and not hasattr(jax.Array, call.name):
        return None  # a method of something else
    parameters = inspect.signature(remedy.after).parameters.values()
    operands = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    options = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    any_option = any(p.kind == p.VAR_KEYWORD for p in parameters)
    given = [*([] if call.owner is None else [call.owner]), *call.arguments]  # x.std()
    if len(given) < len(operands) or any(isinstance(a, ast.Starred) for a in given):
        return None
    extra = [
        ast.keyword(name, value)
        for name, value in zip(options, given[len(operands) :], strict=False)
    ]
    keywords = [*extra, *call.keywords]
    unknown = [k.arg for k in keywords if k.arg not in options]
    if len(given) > len(operands) + len(extra) or (unknown and not any_option):
        return None
    if any(name not in ("axis", "keepdims") for name in unknown):
        return None
    try:
        known = [k for k in keywords if k.arg in options and remedy.tried is None]
        values = {str(k.arg): ast.literal_eval(k.value) for k in known}
    except ValueError:  # an option that only the program knows, and that the repair is run with
        return None
    return Bound(dict(zip(operands, given, strict=False)), keywords, values)


def text(repair: Callable) -> str:
    """The body of a repair, in its own words."""
    *lines, result = _body(repair)
    return "\n".join([*map(ast.unparse, lines), ast.unparse(result.value)])


def own_text(repair: Callable, bound: Bound, expression: Expression) -> str:
    """The user's lines with the repair in the place of the expression, and what it needs before.

    Where nothing can stand before, as in a lambda, all is written in place.
    """
    in_place = not _has_room_before(expression)
    taken = {
        getattr(node, "id", getattr(node, "arg", None))
        for node in ast.walk(_tree(expression.file, tuple(linecache.getlines(expression.file))))
    }
    options = inspect.signature(repair).parameters.values()
    names: dict[str, ast.expr] = {
        p.name: ast.Constant(p.default) for p in options if p.kind == p.KEYWORD_ONLY
    }
    names |= {k.arg: k.value for k in bound.keywords if k.arg in names}
    before = []

    def named(what: ast.expr, wish: str) -> ast.expr:
        name = ast.Name(_free(wish, taken))
        before.append(f"{name.id} = {ast.unparse(what)}")
        return name

    for (parameter, argument), wish in zip(bound.arguments.items(), "uv", strict=False):
        long = any(isinstance(node, ast.Call | ast.BinOp) for node in ast.walk(argument))
        names[parameter] = named(argument, wish) if long and not in_place else argument
    *lines, result = _body(repair)
    put = _Put(names, [k for k in bound.keywords if k.arg not in names])
    for line in lines:
        (target,) = line.targets
        value = put.visit(line.value)
        names[target.id] = value if in_place else named(value, target.id)
    own = textwrap.dedent(expression.replaced(ast.unparse(put.visit(result.value))))
    return "\n".join([*before, own])


def _has_room_before(expression: Expression) -> bool:
    """May an assignment stand before the line? Not where a statement began on an earlier one, or
    another one, or its head, stands on it; nor where names are bound within, or it runs again."""
    place = (expression.first, expression.start)
    around = [
        node
        for node in ast.walk(_tree(expression.file, tuple(linecache.getlines(expression.file))))
        if isinstance(node, ast.stmt | ast.expr)
        and (node.lineno, node.col_offset) <= place < (node.end_lineno, node.end_col_offset)
    ]
    statement = max(
        (node for node in around if isinstance(node, ast.stmt)),
        key=lambda node: (node.lineno, node.col_offset),
        default=None,
    )
    if statement is None or statement.lineno < expression.first:
        return False
    line = linecache.getline(expression.file, expression.first).encode()
    is_first = not line[: statement.col_offset].strip()
    again = isinstance(statement, ast.While) or line.lstrip().startswith(b"elif")
    return is_first and not again and not any(isinstance(node, BINDING) for node in around)


def _body(repair: Callable) -> list[Any]:
    """Its statements: assignments, and a return."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(repair))).body
    assert isinstance(function, ast.FunctionDef)
    return function.body


def _free(name: str, taken: set) -> str:
    return name if name not in taken else _free(name + "_", taken)


class _Put(ast.NodeTransformer):
    """Puts expressions in the place of names, and a call's own keywords in that of **axes.

    An option that is None is left out.
    """

    def __init__(self, names: dict[str, ast.expr], keywords: list[ast.keyword]):
        self.names, self.keywords = names, keywords

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.names.get(node.id, node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        stars = any(k.arg is None for k in node.keywords)
        named = [k for k in node.keywords if k.arg and ast.unparse(k.value) != "None"]
        node.keywords = named + (self.keywords if stars else [])
        return node
