"""Parts 3 and 4: a network of two layers, step by step, in numbers and in matrices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from explorer_parts import diagrams, writing
from explorer_parts.diagrams import Edge, Line, Node
from jaxbackprop import Layer, Network, backward, equations, forward, init, loss
from jaxbackprop.network import Params

HIDDEN = ("sigmoid", "tanh", "relu", "gelu")
SCALAR = {"x": 0.5, "w₁": 0.8, "b₁": -0.2, "w₂": 1.2, "b₂": -0.5, "y": 1.0}
KINDS = {"x": "input", "w": "weight", "b": "bias", "y": "target"}
SHAPE = (3, 4, 2)
EXAMPLES = 5


class Step(NamedTuple):
    symbol: str
    formula: str
    value: np.ndarray


class Walk(NamedTuple):
    """What is given, by its symbol; and both passes, step by step."""

    given: dict[str, np.ndarray]
    steps: list[Step]

    def find(self, symbol: str) -> tuple[int, np.ndarray]:
        """The step, 0 for what is given, and the value of a symbol."""
        if symbol in self.given:
            return 0, self.given[symbol]
        return next((i, s.value) for i, s in enumerate(self.steps, start=1) if s.symbol == symbol)


NUMBERS = """\
z₁       w₁ x + b₁
a₁       σ(z₁)
z₂       w₂ a₁ + b₂
a₂       σ(z₂)
C        ½ (a₂ − y)²
∂C/∂a₂   a₂ − y
σ′(z₂)   the local slope
δ₂       ∂C/∂a₂ · σ′(z₂)   (BP1)
∂C/∂w₂   δ₂ a₁   (BP3)
∂C/∂b₂   δ₂   (BP4)
∂C/∂a₁   w₂ δ₂
σ′(z₁)   the local slope
δ₁       ∂C/∂a₁ · σ′(z₁)   (BP2)
∂C/∂b₁   δ₁   (BP4)
∂C/∂w₁   δ₁ x   (BP3)"""
MATRICES = """\
z¹       W¹ x + b¹
a¹       σ(z¹)
z²       W² a¹ + b²
a²       σ(z²)
C        (1/m) Σᵢ ½ ‖a²ᵢ − yᵢ‖²
∂C/∂a²   a² − y, example by example
σ′(z²)   the local slopes
δ²       ∂C/∂a² ⊙ σ′(z²)   (BP1)
∂C/∂W²   (1/m) δ² (a¹)ᵀ   (BP3)
∂C/∂b²   (1/m) Σᵢ δ²ᵢ   (BP4)
∂C/∂a¹   (W²)ᵀ δ²
σ′(z¹)   the local slopes
δ¹       ∂C/∂a¹ ⊙ σ′(z¹)   (BP2)
∂C/∂b¹   (1/m) Σᵢ δ¹ᵢ   (BP4)
∂C/∂W¹   (1/m) δ¹ xᵀ   (BP3)"""
LAST = len(NUMBERS.splitlines())


# Each in one program: operation by operation, the first drawing would take seconds.


@functools.partial(jax.jit, static_argnums=0)
def _passes(network: Network, params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Forward and backward, in the order of NUMBERS and MATRICES."""
    trace = forward(network, params, x)
    gradients, (delta1, delta2) = backward(network, params, trace, y)
    (z1, z2), (_, a1, a2) = trace
    return (
        *(z1, a1, z2, a2, loss(network, params, x, y)),
        *(network.cost.gradient(a2, y), network.sigma(2).derivative(z2, a2), delta2),
        *(gradients[1].W, gradients[1].b),
        equations.hidden_error(params[1].W, delta2, jnp.ones_like(z1)),
        *(network.sigma(1).derivative(z1, a1), delta1, gradients[0].b, gradients[0].W),
    )


@functools.partial(jax.jit, static_argnums=0)
def _by_lot(network: Network, seed: int) -> tuple[Params, jax.Array, jax.Array]:
    """Weights, inputs and targets."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[1], (SHAPE[0], EXAMPLES))
    return init(network, keys[0]), x, jax.random.uniform(keys[2], (SHAPE[-1], EXAMPLES))


_automatic = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)


def _walk(network: Network, params: Params, x: jax.Array, y: jax.Array, written: str) -> Walk:
    """The passes; the symbols and formulas are those `written`."""
    values = _passes(network, params, x, y)
    lines = [line.split(maxsplit=1) for line in written.splitlines()]
    marks, w = ("₁₂", "w") if lines[0][0] == "z₁" else ("¹²", "W")
    given = {"x": x, "y": y}
    for mark, layer in zip(marks, params, strict=True):
        given |= {w + mark: layer.W, "b" + mark: layer.b}
    return Walk(
        {symbol: np.asarray(value) for symbol, value in given.items()},
        [Step(*line, np.atleast_2d(np.asarray(v))) for line, v in zip(lines, values, strict=True)],
    )


def scalar(activation: str, values: dict[str, float]) -> Walk:
    """The text's two neurons in a row, from z₁ to ∂C/∂w₁."""
    one = {name: jnp.full((1, 1), value, jnp.float32) for name, value in values.items()}
    network = Network((1, 1, 1), hidden=activation, output=activation)
    params = (Layer(one["w₁"], one["b₁"]), Layer(one["w₂"], one["b₂"]))
    return _walk(network, params, one["x"], one["y"], NUMBERS)


@functools.lru_cache(maxsize=64)
def matrices(activation: str, seed: int) -> tuple[Walk, float]:
    """A (3, 4, 2) network, and the largest difference of its gradients from jax.grad's."""
    network = Network(SHAPE, hidden=activation)
    given = _by_lot(network, seed)
    walk, automatic = _walk(network, *given, MATRICES), _automatic(network, *given)
    pairs = [
        (walk.find(f"∂C/∂{part}{mark}")[1], leaf)
        for mark, layer in zip("¹²", automatic, strict=True)
        for part, leaf in zip("Wb", layer, strict=True)
    ]
    return walk, max(float(np.abs(mine - leaf).max()) for mine, leaf in pairs)


AXES = {"x": ("inputs", "examples"), "W": ("neurons", "inputs"), "b": ("", "")}


def figure(name: str, walk: Walk, step: int) -> str:
    """x, z, a, z, a and C in a row; weights on the edges, and what comes back along them."""
    one, two = ("₁", "₂") if "w₁" in walk.given else ("¹", "²")

    def node(symbol: str, gradient: str) -> Node:
        return Node(symbol, (*_named(walk, symbol), *_named(walk, gradient, True)))

    nodes = [
        Node("x", _named(walk, "x")),
        *(node("z" + one, "δ" + one), node("a" + one, f"∂C/∂a{one}")),
        *(node("z" + two, "δ" + two), node("a" + two, f"∂C/∂a{two}")),
        Node("C", (*_named(walk, "C"), *_named(walk, "y"))),
    ]
    edges = [
        *(_weighed(walk, "x", one, False), _bent(walk, one)),
        *(_weighed(walk, "a" + one, two, True), _bent(walk, two)),
        Edge("a" + two, "C", back=walk.find(f"∂C/∂a{two}")[0]),
    ]
    now = f"now {walk.steps[step - 1].symbol}" if step else "before the first step"
    label = f"The network after step {step} of {len(walk.steps)}: {now}"
    return diagrams.figure(name, label, nodes, edges, step)


def _line(walk: Walk, symbol: str, back: bool = False) -> Line:
    at, value = walk.find(symbol)
    if value.size == 1:
        return Line(symbol, f"{symbol} = {writing.number(value.item())}", at, back)
    axes = AXES.get(symbol.removeprefix("∂C/∂")[0], ("neurons", "examples"))
    return Line(symbol, symbol, at, back, value, axes)


def _named(walk: Walk, symbol: str, back: bool = False) -> tuple[Line, ...]:
    """A number below its name: nodes are narrow, and a lecture's screen is wide enough."""
    found = _line(walk, symbol, back)
    if found.array is not None:
        return (found,)
    head = Line(f"name of {symbol}", symbol, found.step if back else 0, back)
    return head, found._replace(text=found.text.split(" = ")[1])


def _weighed(walk: Walk, tail: str, mark: str, returns: bool) -> Edge:
    """From x or a to the z that it feeds, with the layer's weights and their gradients."""
    w = "w" if mark in "₁₂" else "W"
    lines = (
        *(_line(walk, w + mark), _line(walk, "b" + mark)),
        *(*_named(walk, f"∂C/∂{w}{mark}", True), *_named(walk, f"∂C/∂b{mark}", True)),
    )
    return Edge(tail, "z" + mark, lines, walk.find(f"∂C/∂{tail}")[0] if returns else None)


def _bent(walk: Walk, mark: str) -> Edge:
    """From z to a, with σ and its slope."""
    at, value = walk.find(f"σ′(z{mark})")
    slope = f"σ′ = {writing.number(value.item())}" if value.size == 1 else "⊙ σ′"
    lines = (Line("σ", "σ"), Line(f"σ′(z{mark})", slope, at, True))
    return Edge("z" + mark, "a" + mark, lines, walk.find("δ" + mark)[0])


def table(name: str, walk: Walk, step: int) -> str:
    """The steps so far, with their formulas, and their numbers or shapes."""
    rows, marks = [], {}
    for i, (symbol, formula, value) in enumerate(walk.steps[:step], start=1):
        shape = " × ".join(map(str, value.shape))
        rows.append((symbol, formula, writing.number(value.item()) if value.size == 1 else shape))
        marks[symbol] = " ".join(["back"] * (i > 5) + ["now"] * (i == step))
    return writing.table(name, rows, marks=marks)
