"""Part 1: the chain rule for one function inside another, and for two paths that meet."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from explorer_parts import diagrams, writing
from explorer_parts.diagrams import Edge, Line, Node
from jaxbackprop import grad

UNARY = {
    "sin": (jnp.sin, "sin({})"),
    "square": (jnp.square, "({})²"),
    "exp": (jnp.exp, "exp({})"),
    "tanh": (jnp.tanh, "tanh({})"),
    "sigmoid": (jax.nn.sigmoid, "σ({})"),
    "line": (lambda x: 3.0 * x + 1.0, "3({}) + 1"),
}
PAIRS = {"u · v": jnp.multiply, "u + v": jnp.add, "u² + v": lambda u, v: u * u + v}
SPAN = 3.0
QUARTERS = {
    round(quarter * math.pi / 4, 4): quarter for quarter in range(-3, 4) if quarter
}  # of π, as the slider's label has them
PLACES = sorted({round(k / 20, 2) for k in range(-60, 61)} | set(QUARTERS))


def place(shown: float) -> float:
    """What a place of the slider stands for: 0.7854 is π/4."""
    return QUARTERS[shown] * math.pi / 4 if shown in QUARTERS else shown


def place_name(shown: float) -> str:
    """As π/4 ≈ 0.7854, or −0.5."""
    if shown not in QUARTERS:
        return writing.number(shown, 2)
    quarter = QUARTERS[shown]
    shortened = math.gcd(quarter, 4)
    top, bottom = abs(quarter) // shortened, 4 // shortened
    sign, times = "−" if quarter < 0 else "", "" if top == 1 else top
    return f"{sign}{times}π/{bottom} ≈ {writing.number(shown)}"


def written(function: str, argument: str) -> str:
    """How sin of square of x is written: sin(x²)."""
    text = UNARY[function][1].format(argument)
    if len(argument) == 1:
        text = text.replace(f"({argument})²", f"{argument}²").replace(
            f"3({argument})", f"3{argument}"
        )
    return text


@functools.lru_cache(maxsize=256)
def chain(outer: str, inner: str, x: float) -> dict[str, float]:
    """g, f(g), f′(g), g′ and their product at x."""
    f, g = UNARY[outer][0], UNARY[inner][0]
    u = g(jnp.float32(x))
    return {
        "g(x)": float(u),
        "f(g(x))": float(f(u)),
        "f′(g)": float(grad(f)(u)),
        "g′(x)": float(grad(g)(jnp.float32(x))),
        "df/dx": float(grad(lambda x: f(g(x)))(jnp.float32(x))),
    }


@functools.lru_cache(maxsize=64)
def curve(outer: str, inner: str) -> tuple[np.ndarray, np.ndarray]:
    """x and f(g(x)) at 301 points from −SPAN to SPAN."""
    xs = np.linspace(-SPAN, SPAN, 301, dtype=np.float32)
    return xs, np.asarray(UNARY[outer][0](UNARY[inner][0](jnp.asarray(xs))))


class Paths(NamedTuple):
    """f(u, v) with u = g(x), v = h(x): the values, each slope, each path's product, their sum."""

    u: float
    v: float
    f: float
    to_u: float
    to_v: float
    du: float
    dv: float
    by_u: float
    by_v: float
    total: float


@functools.lru_cache(maxsize=256)
def paths(pair: str, first: str, second: str, at: float) -> Paths:
    f, g, h = PAIRS[pair], UNARY[first][0], UNARY[second][0]
    x = jnp.float32(at)
    u, v = g(x), h(x)
    to_u, to_v = grad(f, argnums=(0, 1))(u, v)
    du, dv = grad(g)(x), grad(h)(x)
    total = grad(lambda x: f(g(x), h(x)))(x)
    return Paths(*map(float, (u, v, f(u, v), to_u, to_v, du, dv, to_u * du, to_v * dv, total)))


def paths_figure(pair: str, first: str, second: str, at: float) -> str:
    """x, the two ways from it, and f where they meet."""
    found = paths(pair, first, second, at)

    def line(name: str, value: float, back: bool = False) -> Line:
        return Line(name, f"{name} = {writing.number(value)}", back=back)

    def head(text: str) -> Line:
        return Line(text, text)

    nodes = [
        Node(
            "x",
            (
                line("x", at),
                line("by u", found.by_u, True),
                line("by v", found.by_v, True),
                line("df/dx", found.total, True),
            ),
        ),
        Node("u", (head(f"u = {written(first, 'x')}"), line("u", found.u))),
        Node("v", (head(f"v = {written(second, 'x')}"), line("v", found.v))),
        Node("f", (head(f"f = {pair}"), line("f", found.f))),
    ]
    edges = [
        Edge("x", "u", (line("du/dx", found.du, True),), 0),
        Edge("x", "v", (line("dv/dx", found.dv, True),), 0),
        Edge("u", "f", (line("∂f/∂u", found.to_u, True),), 0),
        Edge("v", "f", (line("∂f/∂v", found.to_v, True),), 0),
    ]
    label = (
        f"Graph of f = {pair} with u = {written(first, 'x')} and v = {written(second, 'x')}: "
        f"two paths lead from x to f, with the products {writing.number(found.by_u)} and "
        f"{writing.number(found.by_v)}; df/dx is their sum, {writing.number(found.total)}"
    )
    return diagrams.figure("paths", label, nodes, edges)


def paths_table(pair: str, first: str, second: str, at: float) -> str:
    """Each path's product, factor by factor, and their sum."""
    found = paths(pair, first, second, at)
    n = writing.number

    def product(a: float, b: float) -> str:
        return f"{n(a)} · {f'({n(b)})' if b < 0 else n(b)}"

    rows = [
        ("∂f/∂u · du/dx", product(found.to_u, found.du), n(found.by_u)),
        ("∂f/∂v · dv/dx", product(found.to_v, found.dv), n(found.by_v)),
        ("df/dx", f"{n(found.by_u)} + {n(found.by_v)}".replace("+ −", "− "), n(found.total)),
    ]
    return writing.table("paths", rows, ("path", "factors", "product"), {"df/dx": "back"})
