"""The numbers of each part. All of them come from the library's own functions."""

import functools
import inspect as source
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from explorer_parts.expressions import Expression, parse
from jaxbackprop import (
    Inspection,
    Layer,
    Network,
    Trace,
    backward,
    equations,
    forward,
    grad,
    init,
    inspect,
    loss,
)
from jaxbackprop.activations import ACTIVATIONS, Activation
from jaxbackprop.forward import last_error

UNARY = {
    "sin": (jnp.sin, "sin({})"),
    "square": (jnp.square, "({})²"),
    "exp": (jnp.exp, "exp({})"),
    "tanh": (jnp.tanh, "tanh({})"),
    "sigmoid": (jax.nn.sigmoid, "σ({})"),
    "line": (lambda x: 3.0 * x + 1.0, "3({}) + 1"),
}
PAIRS = {"u · v": jnp.multiply, "u + v": jnp.add, "u² + v": lambda u, v: u * u + v}
HIDDEN = ("sigmoid", "tanh", "relu", "gelu")
GRID = 50  # points a side of the decision boundary
STEPS = 300


def name(function: str, argument: str) -> str:
    """How sin of square of x is written: sin(x²)."""
    written = UNARY[function][1].format(argument)
    return written.replace("(x)²", "x²").replace("3(x)", "3x")


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
def curve(outer: str, inner: str, span: float) -> tuple[np.ndarray, np.ndarray]:
    """x and f(g(x)) at 301 points from −span to span."""
    xs = np.linspace(-span, span, 301, dtype=np.float32)
    return xs, np.asarray(UNARY[outer][0](UNARY[inner][0](jnp.asarray(xs))))


def paths(pair: str, first: str, second: str, x: float) -> dict[str, float]:
    """f(u, v) with u = g(x), v = h(x): what each path from x brings, and the sum."""
    f, g, h = PAIRS[pair], UNARY[first][0], UNARY[second][0]
    x = jnp.float32(x)
    u, v = g(x), h(x)
    to_u, to_v = grad(f, argnums=(0, 1))(u, v)
    du, dv = grad(g)(x), grad(h)(x)
    return {
        f"u = {name(first, 'x')}": float(u),
        f"v = {name(second, 'x')}": float(v),
        "∂f/∂u · du/dx": float(to_u * du),
        "∂f/∂v · dv/dx": float(to_v * dv),
        "df/dx": float(grad(lambda x: f(g(x), h(x)))(x)),
    }


@functools.lru_cache(maxsize=256)
def inspection(text: str, values: tuple[float, ...]) -> tuple[Expression, Inspection]:
    """The expression, and what `inspect` sees of it at these values."""
    expression = parse(text)
    numbers = tuple(range(len(expression.names)))
    found = inspect(expression.function, argnums=numbers)(*map(jnp.float32, values))
    return expression, found


@functools.lru_cache(maxsize=64)
def drawn(text: str, values: tuple[float, ...]) -> str:
    """The graph as SVG. Needs pygraphviz."""
    return inspection(text, values)[1].draw()


@functools.cache
def shapes() -> dict[str, str]:
    """What each equation takes and gives in a (3, 4, 2) network with five examples."""
    network, x, y = Network((3, 4, 2), "tanh"), jnp.ones((3, 5)), jnp.zeros((2, 5))
    params = init(network, jax.random.key(0))
    trace = forward(network, params, x)
    (z1, z2), (_, a1, a2) = trace
    delta1, delta2 = backward(network, params, trace, y).deltas
    taken = {
        equations.output_error: (network.cost.gradient(a2, y), network.sigma(2).derivative(z2, a2)),
        equations.hidden_error: (params[1].W, delta2, network.sigma(1).derivative(z1, a1)),
        equations.weight_gradient: (delta1, x),
        equations.bias_gradient: (delta1,),
    }
    written = {}
    for equation, arrays in taken.items():
        named = zip(source.signature(equation).parameters, arrays, strict=True)
        given = ", ".join(f"`{name}` {_size(array)}" for name, array in named)
        written[equation.__name__] = f"{given} → {_size(equation(*arrays))}"
    return written


def _size(array: jax.Array) -> str:
    return " × ".join(map(str, array.shape))


SCALAR = {"x": 0.5, "w₁": 0.8, "b₁": -0.2, "w₂": 1.2, "b₂": -0.5, "y": 1.0}


def scalar_network(activation: str, values: dict[str, float]) -> list[tuple[str, str, float]]:
    """The two-layer scalar network from z₁ to ∂C/∂w₁: (symbol, formula, number), step by step."""

    def one(name: str) -> jax.Array:
        return jnp.full((1, 1), values[name], jnp.float32)

    network = Network((1, 1, 1), hidden=activation, output=activation)
    params = (Layer(one("w₁"), one("b₁")), Layer(one("w₂"), one("b₂")))
    trace = forward(network, params, one("x"))
    gradients, (delta1, delta2) = backward(network, params, trace, one("y"))
    (z1, z2), (_, a1, a2) = trace
    slope = ACTIVATIONS[activation].derivative
    back = equations.hidden_error(params[1].W, delta2, jnp.ones_like(z1))
    rows = [
        ("z₁", "w₁ x + b₁", z1),
        ("a₁", "σ(z₁)", a1),
        ("z₂", "w₂ a₁ + b₂", z2),
        ("a₂", "σ(z₂)", a2),
        ("C", "½ (a₂ − y)²", loss(network, params, one("x"), one("y"))),
        ("∂C/∂a₂", "a₂ − y", network.cost.gradient(a2, one("y"))),
        ("σ′(z₂)", "local slope", slope(z2, a2)),
        ("δ₂", "∂C/∂a₂ · σ′(z₂)   (BP1)", delta2),
        ("∂C/∂w₂", "δ₂ a₁   (BP3)", gradients[1].W),
        ("∂C/∂b₂", "δ₂   (BP4)", gradients[1].b),
        ("∂C/∂a₁", "w₂ δ₂", back),
        ("σ′(z₁)", "local slope", slope(z1, a1)),
        ("δ₁", "∂C/∂a₁ · σ′(z₁)   (BP2)", delta1),
        ("∂C/∂b₁", "δ₁   (BP4)", gradients[0].b),
        ("∂C/∂w₁", "δ₁ x   (BP3)", gradients[0].W),
    ]
    return [(symbol, formula, float(jnp.squeeze(number))) for symbol, formula, number in rows]


class Matrices(NamedTuple):
    """The errors of a small network, its gradient by the four equations, and by `grad`."""

    deltas: list[np.ndarray]
    manual: list[np.ndarray]
    automatic: list[np.ndarray]


@functools.lru_cache(maxsize=64)
def matrix_network(activation: str, seed: int) -> Matrices:
    network = Network((3, 4, 2), hidden=activation)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = init(network, keys[0])
    x, y = jax.random.normal(keys[1], (3, 5)), jax.random.uniform(keys[2], (2, 5))
    manual, deltas = backward(network, params, forward(network, params, x), y)
    automatic = jax.grad(loss, argnums=1)(network, params, x, y)
    return Matrices(
        [np.asarray(d) for d in deltas],
        [np.asarray(layer.W) for layer in manual],
        [np.asarray(layer.W) for layer in automatic],
    )


@functools.lru_cache(maxsize=4)
def points(data: str) -> tuple[np.ndarray, np.ndarray]:
    """300 points (2 × m) of two classes (1 × m)."""
    random = np.random.default_rng(0)
    if data == "moons":
        from sklearn.datasets import make_moons

        x, labels = make_moons(300, noise=0.12, random_state=0)
        x = x - [0.5, 0.25]
    else:
        turn, labels = np.sqrt(random.uniform(0.05, 1, 300)) * 9, np.arange(300) % 2
        angle = turn + np.pi * labels
        x = (turn / 6)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        x = x + random.normal(0, 0.05, x.shape)
    return x.T.astype(np.float32), labels[None].astype(np.float32)


class Run(NamedTuple):
    """By step: cost, ‖∂C/∂Wˡ‖, the share of dead units of each hidden layer, parameters."""

    cost: np.ndarray
    norms: np.ndarray
    dead: np.ndarray
    params: Any


SIZES = (2, 16, 16, 16, 1)


def _chosen(which: jax.Array) -> Activation:
    """The activation with this number: one program serves all, and no change recompiles."""
    of = [ACTIVATIONS[each] for each in HIDDEN]
    return Activation(
        "chosen",
        lambda z: jax.lax.switch(which, [each.value for each in of], z),
        lambda z, a: jax.lax.switch(which, [each.derivative for each in of], z, a),
        from_a=False,
    )


def _network(which: jax.Array) -> Network:
    return Network(SIZES, hidden=_chosen(which), loss="binary_cross_entropy")


@jax.jit
def _descend(which, params, rate, x, y):
    network = _network(which)

    def step(params, _):
        trace = forward(network, params, x)
        gradients, _ = backward(network, params, trace, y)
        norms = jnp.stack([jnp.linalg.norm(g.W) for g in gradients])
        slopes = zip(trace.zs[:-1], trace.activations[1:-1], strict=True)
        slope = network.sigma(1).derivative
        flat = [jnp.all(jnp.abs(slope(z, a)) < 1e-3, axis=1) for z, a in slopes]
        cost = jnp.mean(network.cost.cost(trace.zs[-1], trace.activations[-1], y))
        after = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
        return after, (cost, norms, jnp.stack([jnp.mean(each) for each in flat]), params)

    return jax.lax.scan(step, params, length=STEPS)[1]


@jax.jit
def _output(which, params, x):
    return forward(_network(which), params, x).activations[-1]


@functools.lru_cache(maxsize=64)
def train(data: str, activation: str, scheme: str, rate: float) -> Run:
    """300 steps of gradient descent on all points at once, and what each step saw."""
    x, y = points(data)
    params = init(Network(SIZES, loss="binary_cross_entropy"), jax.random.key(1), scheme=scheme)
    which = jnp.int32(HIDDEN.index(activation))
    cost, norms, dead, params = _descend(which, params, jnp.float32(rate), x, y)
    return Run(np.asarray(cost), np.asarray(norms), np.asarray(dead), params)


def boundary(run: Run, activation: str, step: int, extent: float) -> np.ndarray:
    """The output on a grid of the square [−extent, extent]², at a step of the run."""
    side = np.linspace(-extent, extent, GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side)).reshape(2, -1)
    params = jax.tree.map(lambda leaf: leaf[step], run.params)
    which = jnp.int32(HIDDEN.index(activation))
    return np.asarray(_output(which, params, grid)).reshape(GRID, GRID)


class Question(NamedTuple):
    text: str
    hint: str
    answer: float


def questions() -> list[Question]:
    """The answers are computed."""
    sigma = ACTIVATIONS["sigmoid"]
    rows = {symbol: value for symbol, _, value in scalar_network("sigmoid", SCALAR)}
    half = jnp.float32(0.5)
    single = Network((1, 1), loss="binary_cross_entropy")
    trace = Trace((jnp.full((1, 1), 2.1972),), (jnp.zeros((1, 1)), jnp.full((1, 1), 0.9)))
    return [
        Question(
            "The slope of sin(x²) at x = 1",
            "The slope outside, cos(x²), times the slope inside, 2x.",
            chain("sin", "square", 1.0)["df/dx"],
        ),
        Question(
            "∂f/∂y of f = (x + y) · y at x = 2, y = 3",
            "y reaches f by two paths: through the sum, and directly. Add what each brings.",
            float(grad(lambda x, y: (x + y) * y, argnums=1)(2.0, 3.0)),
        ),
        Question(
            "σ′(z) of the sigmoid where its output is a = 0.5",
            "σ′ = a(1 − a): no z is needed.",
            float(sigma.derivative(half, half)),
        ),
        Question(
            "∂C/∂w₁ of the two-layer network at the settings of part 4, to three digits",
            "δ₁ times the input x. Step through part 4 with its sliders where they start.",
            rows["∂C/∂w₁"],
        ),
        Question(
            "The error δ of a sigmoid output a = 0.9 with target y = 1, under cross-entropy",
            "The slope of the sigmoid cancels: what is left is a − y.",
            float(jnp.squeeze(last_error(single, trace, jnp.ones((1, 1))))),
        ),
    ]


def verdict(given: str, answer: float) -> str:
    """What is said to an answer: right to three digits, or to a rounding in the third place."""
    if not given.strip():
        return "not answered yet"
    try:
        number = float(given.replace("−", "-").replace(",", "."))
    except ValueError:
        return "write a number, such as 0.25"
    if abs(number - answer) <= max(5e-3 * abs(answer), 1e-6):
        return f"right: {answer:.4f}"
    return "not yet: open the hint"
