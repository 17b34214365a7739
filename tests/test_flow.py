"""Gradient flow against NumPy, and the sentences about where it ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbackprop import Layer, Network, backward, flow, forward, init, train, unstack

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
    params = jax.tree.map(lambda leaf: scale * leaf + shift, init(network, keys[0]))
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
    return flow.observe(network, params, trace, errors, updates)


@pytest.mark.parametrize(("hidden", "sizes"), CASES)
def test_each_step_is_seen_as_numpy_sees_it(hidden, sizes):
    network, params, x, y = problem(hidden, sizes, scale=1.5)
    zs, activations, deltas, _, gradients = chapter(hidden, params, x, y)
    found = jax.jit(seen, static_argnums=0)(network, params, x, y)
    norm, m = np.linalg.norm, x.shape[1]
    W = [np.asarray(layer.W) for layer in unstack(params)]
    expected = {
        "weights": [norm(g) for g in gradients],
        "errors": [norm(d) / m**0.5 for d in deltas],
        "activations": [norm(a) / m**0.5 for a in activations[1:]],
        "updates": [0.1 * norm(g) / norm(w) for g, w in zip(gradients, W, strict=True)],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=2e-4, err_msg=name)
    _, slope, best = SIGMAS[hidden]
    slopes = [slope(z) for z in zs[:-1]]
    np.testing.assert_allclose(
        found.saturated, [np.mean(s < 0.04 * best) for s in slopes], atol=0.011
    )  # within one unit of one example
    active = np.concatenate([np.ravel(units) for units in found.active])
    np.testing.assert_array_equal(active, np.concatenate([(s > 0).any(1) for s in slopes]))


def test_saturation_is_where_the_textbook_sees_it():
    """|a − ½| > 0.49 for sigmoid, z ≤ 0 for relu."""
    z = jnp.array([[-4.7, -4.5, 0.0, 4.5, 4.7]])
    for hidden, expected in (("sigmoid", 0.4), ("relu", 0.6)):
        network = Network((1, 1, 1), hidden, "identity")
        params = (Layer(jnp.ones((1, 1)), jnp.zeros((1, 1))),) * 2
        found = seen(network, params, z, jnp.zeros((1, 5)))
        np.testing.assert_allclose(found.saturated, [expected], rtol=1e-6)


def test_an_observed_run_is_the_run_and_dead_units_are_those_never_active_in_the_epoch():
    network = Network((2, 4, 2), "relu", "softmax", "cross_entropy")
    inputs = jax.random.uniform(jax.random.key(0), (40, 2))
    targets = jnp.eye(2)[jnp.arange(40) % 2]
    optimizer = optax.sgd(0.1)

    def begin():
        state = train.start(network, optimizer, jax.random.key(1))
        first = state.params[0]
        bias = first.b.at[0].set(-50.0)  # no input reaches this unit
        return state._replace(params=(Layer(first.W, bias), state.params[1]))

    arguments = (network, optimizer, begin(), inputs, targets)
    state, metrics = train.run(*arguments, batch=8, observe=flow.observe)
    plain, plain_metrics = train.run(network, optimizer, begin(), inputs, targets, batch=8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, plain.params
    )
    np.testing.assert_allclose(metrics.loss, plain_metrics.loss, rtol=1e-5)
    assert plain_metrics.seen is None
    assert metrics.seen.weights.shape == (5, 2)
    summary = flow.over_epoch(metrics.seen)
    ever = np.asarray(metrics.seen.active[0]).any(0)
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
    found = seen(network, params, x, y)
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
