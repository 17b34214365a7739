"""The chapter's own numbers and claims, and its slips settled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import Layer, Network, backprop, backward, equations, forward, init, loss
from jaxbackprop.activations import ACTIVATIONS

TWO_NEURONS = Network((1, 1, 1))


def scalar(value):
    return jnp.full((1, 1), value)


@pytest.fixture
def two_layers():
    params = (Layer(scalar(0.8), scalar(-0.2)), Layer(scalar(1.2), scalar(-0.5)))
    trace = forward(TWO_NEURONS, params, scalar(0.5))
    return params, trace, backward(TWO_NEURONS, params, trace, scalar(1.0))


def test_the_two_layer_demo_reproduces_digit_for_digit(two_layers):
    params, (zs, activations), (gradients, deltas) = two_layers
    (z1, z2), (_, a1, a2), (delta1, delta2) = zs, activations, deltas
    dC_da2 = a2 - 1.0
    dC_da1 = params[1].W.T @ delta2
    cost = loss(TWO_NEURONS, params, scalar(0.5), scalar(1.0))
    for value, digits in (
        (z1, "0.200"),
        (a1, "0.550"),
        (z2, "0.160"),
        (a2, "0.540"),
        (cost, "0.1059"),
        (dC_da2, "-0.4601"),
        (delta2, "-0.1143"),
        (gradients[1].W, "-0.0628"),
        (dC_da1, "-0.1372"),
        (delta1, "-0.0340"),
        (gradients[0].W, "-0.0170"),
    ):
        places = len(digits.split(".")[1])
        assert f"{float(jnp.squeeze(value)):.{places}f}" == digits


def test_a_single_neurons_gradient_is_error_times_input():
    network = Network((3, 1))
    params = init(network, jax.random.key(0))
    x, y = jnp.array([[1.0], [-2.0], [0.5]]), scalar(0.25)
    a = forward(network, params, x).activations[-1]
    _, (layer,) = backprop(network, params, x, y)
    delta = (a - y) * a * (1 - a)
    np.testing.assert_allclose(layer.W, delta * x.T, rtol=1e-6)
    np.testing.assert_allclose(layer.b, delta, rtol=1e-6)


def test_a_batch_in_columns_gives_the_mean_of_its_examples_gradients():
    network = Network((3, 4, 2), hidden="tanh")
    params = init(network, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 5))
    y = jax.random.uniform(jax.random.key(2), (2, 5))
    single = [backprop(network, params, x[:, i : i + 1], y[:, i : i + 1]) for i in range(5)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 5, *single)
    jax.tree.map(
        lambda g, ĝ: np.testing.assert_allclose(g, ĝ, rtol=1e-5, atol=1e-7),
        backprop(network, params, x, y),
        mean,
    )


def test_the_cost_is_half_the_squared_distance_averaged_over_examples_only():
    network = Network((2, 2), output="identity")
    params = (Layer(jnp.eye(2), jnp.zeros((2, 1))),)
    x = jnp.array([[1.0, 0.0], [2.0, 0.0]])
    assert loss(network, params, x, jnp.zeros((2, 2))) == (1 + 4) / 2 / 2


def test_squared_error_behind_a_sigmoid_does_not_simplify_to_a_minus_y(two_layers):
    _, trace, (_, deltas) = two_layers
    a = trace.activations[-1]
    assert not np.allclose(deltas[-1], a - 1, rtol=0.1)
    np.testing.assert_allclose(deltas[-1], (a - 1) * a * (1 - a), rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "loss_name"),
    [
        ("softmax", "cross_entropy"),
        ("sigmoid", "binary_cross_entropy"),
        ("identity", "squared_error"),
    ],
)
def test_the_three_twins_have_the_output_error_a_minus_y(output, loss_name):
    network = Network((2, 3), output=output, loss=loss_name)
    params = init(network, jax.random.key(0))
    trace = forward(network, params, jax.random.normal(jax.random.key(1), (2, 4)))
    y = jnp.eye(3)[:, [0, 1, 2, 0]]
    deltas = backward(network, params, trace, y).deltas
    np.testing.assert_allclose(deltas[-1], trace.activations[-1] - y, rtol=1e-6)


def test_the_sigmoid_is_finite_and_exact_where_the_textbook_form_overflows():
    sigmoid = ACTIVATIONS["sigmoid"]
    z = jnp.array([-500.0, -100.0, 0.0, 100.0, 500.0])
    a = sigmoid.value(z)
    assert a.tolist() == pytest.approx([0, 3.8e-44, 0.5, 1, 1], abs=1e-37)
    assert np.isfinite(sigmoid.derivative(z, a)).all()


def test_the_slope_of_the_sigmoid_at_one_half_is_one_quarter():
    assert ACTIVATIONS["sigmoid"].derivative(jnp.zeros(()), jnp.array(0.5)) == 0.25


def test_the_transposed_weights_are_the_adjoint_not_the_inverse():
    """⟨W u, v⟩ = ⟨u, Wᵀ v⟩: BP2 carries errors back along the connections, it undoes nothing."""
    W, u, v = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 2), (2, 1), (3, 1)])
    )
    back = equations.hidden_error(W, v, jnp.ones((2, 1)))
    np.testing.assert_allclose(jnp.vdot(W @ u, v), jnp.vdot(u, back), rtol=1e-5)
    assert not np.allclose(equations.hidden_error(W, W @ u, jnp.ones((2, 1))), u)


def test_gradients_by_hand_train_a_network_that_is_initialised_run_and_differentiated():
    network = Network((2, 8, 1), hidden="tanh", output="sigmoid", loss="binary_cross_entropy")
    params = init(network, jax.random.key(3))
    x = jnp.array([[0.0, 0, 1, 1], [0, 1, 0, 1]])
    y = jnp.array([[0.0, 1, 1, 0]])

    def descend(params, _):
        cost, gradients = backprop(network, params, x, y)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients), cost

    params, costs = jax.lax.scan(descend, params, length=2000)
    assert costs[-1] < 0.01 < costs[0]
    assert (forward(network, params, x).activations[-1].round() == y).all()
