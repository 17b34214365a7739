"""Gradient flow against NumPy, and the sentences about where it ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbackprop import Layer, Network, backward, flow, forward, init, stack, train, unstack

SIGMAS = {
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2, 0.25),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, 1),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), 1),
}
SIZES = [(4, 9, 7, 3), (5, *[6] * 17, 3)]
CASES = list(itertools.product(SIGMAS, SIZES))


def problem(hidden, sizes, m=11, scale=1.0, shift=0.1):
    network = Network(sizes, hidden, "identity", "squared_error")
    keys = jax.random.split(jax.random.key(2), 3)
    params = jax.tree.map(lambda leaf: scale * leaf + shift, stack(init(network, keys[0])))
    x = jax.random.normal(keys[1], (sizes[0], m))
    return network, params, x, jax.random.normal(keys[2], (sizes[-1], m))


def chapter(hidden, params, x, y):
    """The chapter's loop in NumPy and float64: zs, activations, δs, BP2's Wᵀδ, ∂C/∂W."""
    sigma, slope, _ = SIGMAS[hidden]
    layers = [Layer(*(np.asarray(leaf, float) for leaf in layer)) for layer in unstack(params)]
    zs, activations = [], [np.asarray(x, float)]
    for l, (W, b) in enumerate(layers):
        zs.append(W @ activations[-1] + b)
        activations.append(sigma(zs[-1]) if l < len(layers) - 1 else zs[-1])
    deltas, carried = [activations[-1] - np.asarray(y, float)], []
    for l in range(len(layers) - 1, 0, -1):
        carried.insert(0, layers[l].W.T @ deltas[0])
        deltas.insert(0, carried[0] * slope(zs[l - 1]))
    gradients = [d @ a.T / x.shape[1] for d, a in zip(deltas, activations, strict=False)]
    return zs, activations, deltas, carried, gradients


def seen(network, params, x, y):
    trace = forward(network, params, x)
    errors = backward(network, params, trace, y)
    updates = jax.tree.map(lambda g: -0.1 * g, errors.gradients)
    seen = (network, params, trace, errors, updates)
    return flow.observe(*seen), flow.active(*seen)


def as_numpy_sees_it(hidden, params, x, y):
    """What `observe` should find, with the bound on each: 0.011 is less than a unit's example."""
    zs, activations, deltas, _, gradients = chapter(hidden, params, x, y)
    norm, m = np.linalg.norm, x.shape[1]
    W = [np.asarray(layer.W) for layer in unstack(params)]
    _, slope, best = SIGMAS[hidden]
    slopes = [slope(z) for z in zs[:-1]]
    return {
        "weights": [norm(g) for g in gradients],
        "errors": [norm(d) / m**0.5 for d in deltas],
        "activations": [norm(a) / m**0.5 for a in activations[1:]],
        "updates": [0.1 * norm(g) / norm(w) for g, w in zip(gradients, W, strict=True)],
        "saturated": [np.mean(s < 0.04 * best) for s in slopes],
        "active": np.concatenate([(s > 0).any(1) for s in slopes]),
    }


def differing(found, expected):
    """The names of what is not as it should be."""
    found, active = found
    units = np.concatenate([np.ravel(units) for units in active])
    wrong = [] if np.array_equal(units, expected["active"]) else ["active"]
    for name in ("weights", "errors", "activations", "updates", "saturated"):
        rtol, atol = (0, 0.011) if name == "saturated" else (2e-4, 0)
        if not np.allclose(getattr(found, name), expected[name], rtol=rtol, atol=atol):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(("hidden", "sizes"), CASES)
def test_each_step_is_seen_as_numpy_sees_it(hidden, sizes):
    network, params, x, y = problem(hidden, sizes, scale=1.5)
    found = jax.jit(seen, static_argnums=0)(network, params, x, y)
    assert differing(found, as_numpy_sees_it(hidden, params, x, y)) == []


FAULTS = {
    "largest entries for norms": (
        "_norm",
        lambda norm: lambda array, scale=1.0: jnp.max(jnp.abs(array), (-2, -1)),
        {"weights", "errors", "activations", "updates"},
    ),
    "layers from the last to the first": (
        "_by_layer",
        lambda by_layer: lambda values: by_layer(values)[::-1],
        {"weights", "errors", "activations", "updates", "saturated"},
    ),
    "σ′ where it is not": (
        "_slopes",
        lambda slopes: lambda *a: [jnp.zeros_like(s) for s in slopes(*a)],
        {"saturated", "active"},
    ),
    "saturated below half the steepest σ′": ("SATURATED", lambda share: 0.5, {"saturated"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_flow_seen_wrongly_is_rejected(fault, monkeypatch):
    network, params, x, y = problem("tanh", SIZES[0], scale=1.5)
    name, wrong, noticed = FAULTS[fault]
    monkeypatch.setattr(flow, name, wrong(getattr(flow, name)))
    found = seen(network, params, x, y)
    assert set(differing(found, as_numpy_sees_it("tanh", params, x, y))) == noticed


def test_saturation_is_where_the_textbook_sees_it():
    """|a − ½| > 0.49 for sigmoid, z ≤ 0 for relu."""
    z = jnp.array([[-4.7, -4.5, 0.0, 4.5, 4.7]])
    for hidden, expected in (("sigmoid", 0.4), ("relu", 0.6)):
        network = Network((1, 1, 1), hidden, "identity")
        params = (Layer(jnp.ones((1, 1)), jnp.zeros((1, 1))),) * 2
        found, _ = seen(network, params, z, jnp.zeros((1, 5)))
        np.testing.assert_allclose(found.saturated, [expected], rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 8, 20])
def test_an_observed_run_is_the_run_and_dead_units_are_those_never_active_in_the_epoch(steps):
    network = Network((2, 4, 2), "relu", "softmax", "cross_entropy")
    inputs = jax.random.uniform(jax.random.key(0), (8 * steps, 2))
    targets = jnp.eye(2)[jnp.arange(8 * steps) % 2]
    optimizer = optax.sgd(0.1)

    def begin():
        state = train.start(network, optimizer, jax.random.key(1))
        first = state.params[0]
        bias = first.b.at[0].set(-50.0)  # no input reaches this unit
        return state._replace(params=(Layer(first.W, bias), state.params[1]))

    def run(**looking):
        return train.run(network, optimizer, begin(), inputs, targets, batch=8, **looking)

    state, metrics = run(watch=flow.active, observe=flow.observe)
    plain, plain_metrics = run()
    every, each = run(watch=flow.observe)
    for other in (plain, every):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, other.params
        )
    np.testing.assert_allclose(metrics.loss, plain_metrics.loss, rtol=1e-5)
    np.testing.assert_array_equal(metrics.bad_layer, np.zeros(steps))
    assert plain_metrics.seen is None
    jax.tree.map(  # the first of every 8 steps
        lambda a, b: np.testing.assert_allclose(a, b[::8], rtol=1e-4), metrics.seen, each.watched
    )
    summary = flow.over_epoch(metrics.seen, metrics.watched)
    assert metrics.watched[0].shape == (steps, 4)
    ever = np.asarray(metrics.watched[0]).any(0)
    assert not ever[0]
    np.testing.assert_allclose(summary["dead"], [np.mean(~ever)])
    np.testing.assert_allclose(summary["weights"], metrics.seen.weights.mean(0), rtol=1e-6)
    assert jnp.all(metrics.seen.saturated[:, 0] >= 0.25)


@pytest.mark.parametrize(("hidden", "sizes"), CASES)
def test_the_two_gains_are_bp2s_two_factors(hidden, sizes):
    network, params, x, y = problem(hidden, sizes, scale=1.5)
    _, _, deltas, carried, _ = chapter(hidden, params, x, y)
    found = flow.gains(network, params, x, y)
    norms = [np.linalg.norm(d) for d in deltas]
    back = [np.linalg.norm(c) for c in carried]
    np.testing.assert_allclose(found.weights, np.divide(back, norms[1:]), rtol=2e-4)
    np.testing.assert_allclose(found.slopes, np.divide(norms[:-1], back), rtol=2e-4)
    whole = np.prod(np.asarray(found.weights, float) * np.asarray(found.slopes, float))
    np.testing.assert_allclose(whole, norms[0] / norms[-1], rtol=1e-3)


def with_layer(params, l, change):
    return tuple(change(layer) if k == l - 1 else layer for k, layer in enumerate(params))


@pytest.mark.parametrize(
    ("hidden", "l", "change", "sentence"),
    [
        ("tanh", 2, lambda w: w._replace(b=w.b + 5), "layer 2 saturates"),
        ("relu", 3, lambda w: w._replace(b=w.b - 9), "layer 3 saturates: σ′ passes 0 "),
        ("tanh", 3, lambda w: w._replace(W=w.W / 50), "the weights of layer 3 shrink it"),
        ("relu", 3, lambda w: w._replace(W=w.W * 50), "the weights of layer 3 make it grow"),
    ],
)
def test_the_report_names_the_layer_and_the_factor(hidden, l, change, sentence):
    network, params, x, y = problem(hidden, (30, 30, 30, 30, 30), shift=0)
    healthy = flow.explain(network, flow.gains(network, params, x, y))
    assert "no layer halves or doubles" in healthy, healthy
    sick = flow.explain(network, flow.gains(network, with_layer(params, l, change), x, y))
    assert sentence in sick, sick
    others = [line for line in sick.splitlines()[1:] if sentence not in line]
    assert len([line for line in others if "no error arrives" not in line]) <= 1, sick


def test_sigmoid_shrinks_the_error_even_at_its_best():
    network, params, x, y = problem("sigmoid", (30, 30, 30, 30), shift=0)
    text = flow.explain(network, flow.gains(network, params, x, y))
    assert "layers 1 to 2 are at their best, with σ′ ≤ 0.25" in text, text


def test_errors_far_below_the_root_of_the_least_number_are_not_taken_for_zero():
    """Forty sigmoids: ‖δ¹‖ is about 1e-24, whose square is 0 in float32."""
    network, params, x, y = problem("sigmoid", (30,) * 41, shift=0)
    _, _, deltas, carried, gradients = chapter("sigmoid", params, x, y)
    found, _ = seen(network, params, x, y)
    norms = [np.linalg.norm(d) / x.shape[1] ** 0.5 for d in deltas]
    assert norms[0] < 1e-22
    np.testing.assert_allclose(found.errors, norms, rtol=1e-3)
    np.testing.assert_allclose(found.weights, [np.linalg.norm(g) for g in gradients], rtol=1e-3)
    split = flow.gains(network, params, x, y)
    back = [np.linalg.norm(c) for c in carried]
    np.testing.assert_allclose(
        split.slopes, np.array([*map(np.linalg.norm, deltas)])[:-1] / back, rtol=1e-3
    )
    text = flow.explain(network, split)
    assert "no error arrives" not in text, text
    assert "saturate" not in text, text
