"""Part 5: a network that trains on points of two classes, and what each step saw."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from explorer_parts import writing
from jaxbackprop import Network, backward, flow, forward, init

STEPS = 300
GRID = 50  # points a side of the decision boundary
WIDTH = 16
DEPTHS = (1, 3, 8)
INPUTS, OUTPUTS = 2, 1


class Choice(NamedTuple):
    data: str
    activation: str
    scheme: str
    depth: int
    rate: float


class Run(NamedTuple):
    """By step: cost, ‖δˡ‖ of the typical example, the share of dead units by hidden layer, params.

    A unit is dead where its slope is 0 for every point.
    """

    cost: np.ndarray
    errors: np.ndarray
    dead: np.ndarray
    params: Any


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


def _network(activation: str, depth: int) -> Network:
    sizes = (INPUTS, *[WIDTH] * depth, OUTPUTS)
    return Network(sizes, hidden=activation, loss="binary_cross_entropy")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(activation, depth, params, rate, x, y):
    network = _network(activation, depth)

    def step(params, _):
        trace = forward(network, params, x)
        found = backward(network, params, trace, y)
        updates = jax.tree.map(lambda g: -rate * g, found.gradients)
        errors = flow.observe(network, params, trace, found, updates).errors
        alive = flow.active(network, params, trace, found, updates)
        dead = jnp.stack([1 - jnp.mean(each, dtype=jnp.float32) for each in alive])
        cost = jnp.mean(network.cost.cost(trace.zs[-1], trace.activations[-1], y))
        after = jax.tree.map(jnp.add, params, updates)
        return after, (cost, errors, dead, params)

    return jax.lax.scan(step, params, length=STEPS)[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _output(activation, depth, params, x):
    return forward(_network(activation, depth), params, x).activations[-1]


@functools.lru_cache(maxsize=64)
def train(choice: Choice) -> Run:
    """300 steps of gradient descent on all points at once."""
    data, activation, scheme, depth, rate = choice
    network = _network(activation, depth)
    params = init(network, jax.random.key(1), scheme=scheme)
    seen = _descend(activation, depth, params, jnp.float32(rate), *points(data))
    return Run(*jax.tree.map(np.asarray, seen))


def extent(data: str) -> float:
    """Half the side of the square that is drawn."""
    return 1.15 * float(np.abs(points(data)[0]).max())


def boundary(choice: Choice, step: int) -> np.ndarray:
    """The output on a grid of the square, at a step of the run."""
    side = np.linspace(-extent(choice.data), extent(choice.data), GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side)).reshape(2, -1)
    params = jax.tree.map(lambda leaf: leaf[step], train(choice).params)
    found = _output(choice.activation, choice.depth, params, grid)
    return np.asarray(found).reshape(GRID, GRID)


def words(choice: Choice, step: int) -> list[str]:
    """What there is to see at a step, in sentences: also what a logarithmic axis cannot show."""
    run = train(choice)
    first, last = float(run.errors[step, 0]), float(run.errors[step, -1])
    if not np.isfinite(run.cost[step]) or not np.isfinite(run.errors[step]).all():
        since = int(np.argmin(np.isfinite(run.cost) & np.isfinite(run.errors).all(1)))
        return [f"The run has diverged: from step {since} on there are no numbers to draw."]
    found = []
    gone = [l + 1 for l, error in enumerate(run.errors[step]) if error == 0]
    if gone:
        since = int(np.argmax((run.errors == 0).any(1)))
        which = f"layer {gone[0]}" if len(gone) == 1 else f"layers {gone[0]} to {gone[-1]}"
        found.append(
            f"δ is exactly 0 in {which}: there is nothing left to learn from, and a gap in the "
            f"curve. It began at step {since}."
        )
    elif last > 0:
        found.append(f"At this step ‖δ¹‖ is {_share(first / last)} the output's ‖δ‖.")
    counts = [round(float(share) * WIDTH) for share in run.dead[step]]
    if any(counts):
        listed = ", ".join(map(str, counts))
        found.append(f"Dead units, flat for every point, layer by layer: {listed} of {WIDTH}.")
    return found


def _share(ratio: float) -> str:
    if ratio > 0.5:
        return f"{writing.number(ratio, 1)} times"
    return f"1/{1 / ratio:.0f} of" if ratio > 1e-4 else f"{writing.number(ratio)} times"


def table(choice: Choice, step: int) -> str:
    """Cost and ‖δ‖ of every layer at the step, beside those at the start."""
    run = train(choice)

    def row(name: str, values: np.ndarray) -> tuple[str, ...]:
        return name, writing.number(float(values[0])), writing.number(float(values[step]))

    rows = [row("cost", run.cost)]
    for l, errors in enumerate(run.errors.T, start=1):
        which = "output" if l == run.errors.shape[1] else f"layer {l}"
        rows.append(row(f"‖δ‖ of {which}", errors))
    return writing.table("training", rows, ("", "at the start", f"at step {step}"))
