"""Expressions that a reader types, parsed into a function of jax numbers and never run as code."""

import ast
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable] = {
    "sin": jnp.sin,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": lambda x: jnp.maximum(x, 0.0),
}
LENGTH, VARIABLES, POWER = 120, 5, 9  # a picture of more cannot be read
SIGNS = str.maketrans({"^": "**", "·": "*", "×": "*", "−": "-"})
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\d.])"


class Expression(NamedTuple):
    """The text, the names of its variables in alphabetical order, and its function of them."""

    text: str
    names: tuple[str, ...]
    function: Callable[..., Any]


def parse(text: str) -> Expression:
    """An expression of + - * / ^, numbers, single names and the functions of `FUNCTIONS`.

    Raises ValueError with a sentence for the reader where the text is anything else.
    """
    text = text.strip()
    if not text:
        raise ValueError("Type an expression, such as (x + y) * y.")
    if len(text) > LENGTH:
        raise ValueError(
            f"The expression has {len(text)} characters; at most {LENGTH} can be read."
        )
    try:
        tree = ast.parse(_multiplied(text.translate(SIGNS)), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("This is no expression: is a bracket or an operator missing?") from None
    names = sorted(set(_variables(tree.body)))
    if not names:
        raise ValueError("The expression has no variable: there is nothing to differentiate.")
    if len(names) > VARIABLES:
        raise ValueError(f"There are {len(names)} variables; at most {VARIABLES} can be drawn.")

    def function(*values: Any) -> Any:
        return _value(tree.body, dict(zip(names, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named: Any = function  # the graph calls the arguments by their names
    named.__signature__ = inspect.Signature([inspect.Parameter(each, kind) for each in names])
    return Expression(text, tuple(names), function)


def _multiplied(text: str) -> str:
    """With the * that a reader leaves out: 2x, 3(x + y), (x + 1)y, x(y + 1)."""
    text = re.sub(rf"(?<![\w.])({NUMBER})\s*(?=[A-Za-z(])", r"\1*", text)
    text = re.sub(r"\)\s*(?=[\w(])", ")*", text)
    return re.sub(r"(?<!\w)([A-Za-z])\s*(?=\()", r"\1*", text)


def _variables(node: ast.AST) -> list[str]:
    """The names in an expression. Raises ValueError for whatever is not on the list."""
    match node:
        case ast.BinOp(left, ast.Pow(), right):
            _whole_power(right)
            return _variables(left)
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            return _variables(left) + _variables(right)
        case ast.UnaryOp(ast.USub() | ast.UAdd(), operand):
            return _variables(operand)
        case ast.Call(ast.Name(name), [argument], []) if name in FUNCTIONS:
            return _variables(argument)
        case ast.Call(ast.Name(name)) if name in FUNCTIONS:
            raise ValueError(f"{name} takes one argument, as in {name}(x).")
        case ast.Call(ast.Name(name)):
            raise ValueError(f"{name} is not known here; try one of {', '.join(FUNCTIONS)}.")
        case ast.Name(name) if name in FUNCTIONS:
            raise ValueError(f"{name} is a function: write {name}(x).")
        case ast.Name("f"):
            raise ValueError("f is what the expression is called: name the variable otherwise.")
        case ast.Name(name) if len(name) == 1:
            return [name]
        case ast.Name(name):
            raise ValueError(f"{name} is no variable: variables are single letters, as x.")
        case ast.Constant(bool() | complex()):
            raise ValueError("Only real numbers can stand in an expression.")
        case ast.Constant(int() | float()):
            return []
    raise ValueError("Only numbers, variables, + - * / ^ and the functions listed can be used.")


def _whole_power(node: ast.AST) -> int:
    match node:
        case ast.Constant(int(power)) if not isinstance(power, bool) and 1 <= power <= POWER:
            return power
        case ast.UnaryOp(ast.USub(), operand):
            return -_whole_power(operand)
    raise ValueError(
        f"An exponent is a whole number from 1 to {POWER}, or −1 to −{POWER}; "
        "for others use exp and log."
    )


def _value(node: ast.AST, values: dict[str, Any]) -> Any:
    match node:
        case ast.BinOp(left, ast.Pow(), right):
            return _value(left, values) ** _whole_power(right)
        case ast.BinOp(left, op, right):
            return BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op, operand):
            inner = _value(operand, values)
            return -inner if isinstance(op, ast.USub) else inner
        case ast.Call(ast.Name(name), [argument]):
            return FUNCTIONS[name](_value(argument, values))
        case ast.Name(name):
            return values[name]
        case ast.Constant(number):
            return jnp.float32(float(number))
    raise TypeError(f"{ast.dump(node)} was not checked")
