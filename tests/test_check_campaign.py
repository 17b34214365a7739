"""Every planted mistake is caught and most are named; no correct gradient is called wrong.

The networks and their backward passes are written here in plain NumPy: nothing of the package's
network wing is used, and neither is jax.grad on them.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop.check import check_gradients
from jaxbackprop.check.arguments import Moving, matched, moving
from jaxbackprop.check.function import flatten
from jaxbackprop.check.gradients import comparison
from jaxbackprop.check.probing import Measured, measured


class Layer(NamedTuple):
    W: np.ndarray
    b: np.ndarray


class Case(NamedTuple):
    """A network of plain arrays: σ and σ′ as functions of z, parameters, data."""

    sigma: Callable
    slope: Callable
    params: dict
    x: np.ndarray
    y: np.ndarray


def sigmoid(z):
    return 0.5 * (1 + np.tanh(z / 2))


ACTIVATIONS = {
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
    "leaky": (
        lambda z: np.where(z > 0, z, z / 8),
        lambda z: np.where(z > 0, 1, 0.125).astype(z.dtype),
    ),
    "cubic": (lambda z: z - z**3 / 9, lambda z: 1 - z**2 / 3),
}


def network(sizes, activation, m, dtype, seed) -> Case:
    random = np.random.default_rng(seed)
    layers = [
        Layer(random.normal(size=(n, p)) / p**0.5, random.normal(size=(n, 1)) / 4)
        for p, n in itertools.pairwise(sizes)
    ]
    x, y = random.normal(size=(sizes[0], m)), random.normal(size=(sizes[-1], m))
    params = {"layers": layers, "unused": random.normal(size=(3,))}
    return Case(*ACTIVATIONS[activation], *jax.tree.map(lambda v: v.astype(dtype), (params, x, y)))


def cost(case: Case) -> Callable:
    """C = (1/m) Σ ½‖a − y‖², as a function of parameters and data."""

    def f(params, x, y):
        a = x
        for W, b in params["layers"]:
            a = case.sigma(W @ a + b)
        return np.sum((a - y) ** 2) / (2 * x.shape[1])

    return f


def backward(case: Case, wrong: str = "") -> dict:
    """The gradient by the four equations, with one mistake where `wrong` names it."""
    layers, m = case.params["layers"], case.x.shape[1]
    zs, activations = [], [case.x]
    for W, b in layers:
        zs.append(W @ activations[-1] + b)
        activations.append(case.sigma(zs[-1]))
    output_slope = 1 if wrong == "no σ′ at the output" else case.slope(zs[-1])
    delta = (activations[-1] - case.y) * output_slope
    if wrong == "the last example only":
        delta = delta * (np.arange(m) == m - 1).astype(delta.dtype)
    gradients = []
    for l in reversed(range(len(layers))):
        a, W = activations[l], layers[l].W
        if wrong == "a of the layer itself" and W.shape[0] == W.shape[1]:
            a = activations[l + 1]
        examples = slice(0, 1) if wrong == "b of one example" else slice(None)
        gradients.append(Layer(delta @ a.T / m, delta[:, examples].sum(1, keepdims=True) / m))
        if l:
            back = W if wrong == "no transpose in BP2" and W.shape[0] == W.shape[1] else W.T
            slope = case.slope(zs[l - 1])
            if wrong == "no σ′ in BP2":
                slope = 1
            if wrong == "σ′ of the layer above" and zs[l].shape == zs[l - 1].shape:
                slope = case.slope(zs[l])
            if wrong == "a for σ′":
                slope = activations[l]
            delta = (back @ delta) * slope
    return {"layers": gradients[::-1], "unused": np.zeros_like(case.params["unused"])}


def scaled(factor: Callable[[Case], float]) -> Callable:
    return lambda case, g: jax.tree.map(lambda v: (v * factor(case)).astype(v.dtype), g)


def changed(l: int, **fields: Callable) -> Callable:
    """The gradient with some fields of layer l replaced by functions of (gradient, case)."""

    def change(case, g):
        layers = list(g["layers"])
        layers[l] = layers[l]._replace(**{k: make(g, case) for k, make in fields.items()})
        return {**g, "layers": layers}

    return change


def each_layer(change: Callable[[Layer, Case], Layer]) -> Callable:
    return lambda case, g: {**g, "layers": [change(layer, case) for layer in g["layers"]]}


def without_last_row(g, case):
    W = g["layers"][1].W.copy()
    W[-1] = 0
    return W


def with_nan(g, case):
    W = g["layers"][1].W.copy()
    W[0, 1] = np.nan
    return W


ONE, TWO = "layers[1]", "layers[2]"

# What was done wrong: (how, the kind of finding that names it, what its text has to contain).
# A string is a mistake inside the backward pass above; a function changes a right gradient.
MISTAKES: dict[str, tuple[Any, str, str]] = {
    "the sign": (scaled(lambda case: -1), "factor", "the sign"),
    "a square without its ½": (scaled(lambda case: 2), "factor", "2 too many"),
    "sum instead of mean": (scaled(lambda case: case.x.shape[1]), "factor", "is 1/m missing"),
    "1/m twice": (scaled(lambda case: 1 / case.x.shape[1]), "factor", "1/m taken twice"),
    "n_out times too large": (scaled(lambda case: case.y.shape[0]), "factor", "is a width"),
    "b summed, not averaged": (
        each_layer(lambda layer, case: layer._replace(b=layer.b * case.x.shape[1])),
        "factor",
        "is 1/m missing",
    ),
    "W transposed": (changed(1, W=lambda g, _: g["layers"][1].W.T), "transposed", f"{ONE}.W"),
    "a leaf forgotten": (changed(1, b=lambda g, _: 0 * g["layers"][1].b), "missing", f"{ONE}.b"),
    "nothing passed below": (
        lambda case, g: {
            **g,
            "layers": [Layer(0 * v.W, 0 * v.b) for v in g["layers"][:2]] + g["layers"][2:],
        },
        "missing",
        "no error is passed back below",
    ),
    "shifted by a layer": (changed(1, W=lambda g, _: g["layers"][2].W), "shifted", f"{TWO}.W"),
    "two leaves swapped": (
        lambda case, g: {
            **g,
            "layers": [g["layers"][0], g["layers"][2], g["layers"][1], *g["layers"][3:]],
        },
        "swapped",
        f"{ONE}.W and {TWO}.W",
    ),
    "zero elsewhere": (
        lambda case, g: {**g, "unused": np.ones_like(g["unused"])},
        "should be zero",
        "unused",
    ),
    "a row left out": (changed(1, W=without_last_row), "part", "index 3 of axis 0"),
    "an index off by one": (
        changed(1, W=lambda g, _: np.roll(g["layers"][1].W, 1, 0)),
        "off by one",
        "axis 0",
    ),
    "not a number": (changed(1, W=with_nan), "not finite", "1 NaN of 16"),
    "a broadcast not summed": (
        changed(1, b=lambda g, case: np.repeat(g["layers"][1].b, case.x.shape[1], 1)),
        "refused",
        "a broadcast was not summed over axis 1",
    ),
    "b of one example": ("b of one example", "one kind of leaf", "BP4"),
    "a of the layer itself": ("a of the layer itself", "one kind of leaf", "BP3"),
    "no σ′ in BP2": ("no σ′ in BP2", "from a layer", "from layers[3] to layers[2]"),
    "no transpose in BP2": ("no transpose in BP2", "from a layer", "BP2"),
    "σ′ of the layer above": ("σ′ of the layer above", "from a layer", "BP2"),
    "a for σ′": ("a for σ′", "from a layer", "BP2"),
    "no σ′ at the output": ("no σ′ at the output", "from the output", "BP1"),
    "the last example only": ("the last example only", "from the output", "average"),
    "weight decay": (
        lambda case, g: jax.tree.map(lambda v, w: (v + w / 100).astype(v.dtype), g, case.params),
        "decay",  # not among the patterns: it is caught, and not named
        "",
    ),
}

NETWORKS = [
    ([3, 4, 4, 4, 2], "sigmoid", 7),
    ([3, 4, 4, 4, 2], "tanh", 5),
    ([5, 4, 4, 4, 3], "leaky", 9),
    ([2, 4, 4, 4, 3], "cubic", 6),
    ([3, 4, 4, 4, 5], "tanh", 12),
    ([6, 4, 4, 4, 2], "sigmoid", 10),
    ([3, 4, 4, 4, 3], "leaky", 4),
    ([2, 4, 4, 4, 2], "tanh", 3),
    ([7, 4, 4, 4, 6], "cubic", 8),
    ([4, 4, 4, 4, 3], "leaky", 11),
]


def planted(case: Case, how: Any) -> dict:
    return backward(case, how) if isinstance(how, str) else how(case, backward(case))


def verdict(moves: Moving, slopes: Measured, gradient: Any) -> tuple[bool, dict[str, str]]:
    """ok, and the findings' texts by kind; a refusal is a finding."""
    try:
        result = comparison(slopes, matched(moves, gradient, given=True)[1])
    except ValueError as error:
        return False, {"refused": str(error)}
    texts: dict[str, str] = {}
    for finding in result.findings:
        texts[finding.kind] = texts.get(finding.kind, "") + finding.text
    return result.ok, texts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_mistake_is_caught_and_nine_in_ten_are_named(dtype, untyped):
    assert len(MISTAKES) >= 20
    assert len(NETWORKS) >= 10
    missed, unnamed = [], {}
    for seed, (sizes, activation, m) in enumerate(NETWORKS):
        case = network(sizes, activation, m, dtype, seed)
        moves = moving((case.params, case.x, case.y), 0)
        slopes = measured(flatten(cost(case), moves), moves)
        for name, (how, kind, words) in MISTAKES.items():
            ok, texts = verdict(moves, slopes, planted(case, how))
            if ok:
                missed.append((name, seed))
            elif words not in texts.get(kind, "\0"):
                unnamed.setdefault(name, []).append((seed, texts))
    assert not missed
    assert len(unnamed) <= len(MISTAKES) // 10, unnamed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_correct_networks_pass(dtype, untyped):
    """80 networks each: every activation, depths 1 to 5, batches 1 to 16."""
    random = np.random.default_rng(7)
    for seed, activation in itertools.product(range(16), ACTIVATIONS):
        sizes = random.integers(1, 7, 2 + seed % 5).tolist()
        case = network(sizes, activation, int(random.integers(1, 17)), dtype, 100 + seed)
        gradient = backward(case)
        result = check_gradients(cost(case), case.params, case.x, case.y, gradient=gradient)
        assert result.ok, f"{sizes}, {activation}, {seed}\n{result}"


KINKED = {
    "abs": lambda v: jnp.sum(jnp.abs(v)),
    "relu": lambda v: jnp.sum(jax.nn.relu(v) ** 2 + jax.nn.relu(v)),
    "leaky relu": lambda v: jnp.sum(jnp.sin(jax.nn.leaky_relu(v))),
    "elu": lambda v: jnp.sum(jax.nn.elu(v)),
    "maximum": lambda v: jnp.max(v) + jnp.sum(v**2),
    "hinge": lambda v: jnp.mean(jnp.maximum(0, 1 - v * jnp.sign(jnp.arange(v.size) - 2.5))),
    "clip": lambda v: jnp.sum(jnp.clip(v, -1, 1) * v),
    "quantile loss": lambda v: jnp.sum(jnp.maximum(0.9 * (v - 0.3), -0.1 * (v - 0.3))),
    "sort": lambda v: jnp.dot(jnp.sort(v), jnp.arange(v.size)),
    "where": lambda v: jnp.sum(jnp.where(v > 0.2, v**3, 0.04 * v)),
    "total variation": lambda v: jnp.sum(jnp.abs(jnp.diff(v))) + jnp.sum(v**2),
    "logsumexp": lambda v: jax.nn.logsumexp(3 * v),
    "norm": lambda v: jnp.linalg.norm(v - 3),
    "pooling": lambda v: jnp.sum(jnp.max(v.reshape(3, 2), axis=1) ** 2) + 0.1 * jnp.sum(v),
}
POINTS = (
    [0.7, -0.9, 0.31, 1.6, -2.3, 0.05],
    [0.0, 1.0, -1.0, 0.3, 2.0, -1e-4],  # on kinks, and just beside one
    [1e-6, -1e-7, 1.5, -1.5, 0.2000001, 3.0],
)


@pytest.mark.parametrize("name", KINKED)
def test_correct_gradients_of_functions_with_kinks_pass(name):
    for point in POINTS:
        result = check_gradients(KINKED[name], jnp.array(point))
        assert result.ok, str(result)


def test_a_wrong_gradient_is_caught_beside_a_kink():
    v = jnp.array(POINTS[1])
    gradient = jax.grad(KINKED["relu"])(v)
    assert check_gradients(KINKED["relu"], v, gradient=gradient.at[0].set(0.5)).ok  # at the kink
    assert not check_gradients(KINKED["relu"], v, gradient=gradient.at[1].set(0.5)).ok
