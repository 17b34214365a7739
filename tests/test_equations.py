"""BP1 to BP4: each is the sum over paths that it abbreviates; a wrong formula is rejected."""

import jax
import numpy as np
import oracle
import pytest

from jaxbackprop import Network, equations, init, loss

rng = np.random.default_rng(0)
n, p, q, m = 4, 3, 2, 5
W_next, delta_next = rng.normal(size=(q, n)), rng.normal(size=(q, m))
delta, a_prev = rng.normal(size=(n, m)), rng.normal(size=(p, m))
sigma_prime = rng.normal(size=(n, m))


def agree(array, expected):
    np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6)


def f32(*arrays):
    return [jax.numpy.asarray(array, "float32") for array in arrays]


def test_BP1_multiplies_each_neurons_cost_gradient_by_its_slope():
    expected = [[delta[j, i] * sigma_prime[j, i] for i in range(m)] for j in range(n)]
    agree(equations.output_error(*f32(delta, sigma_prime)), expected)


def test_BP2_sums_over_the_paths_through_the_next_layer():
    expected = [
        [
            sum(W_next[k, j] * delta_next[k, i] for k in range(q)) * sigma_prime[j, i]
            for i in range(m)
        ]
        for j in range(n)
    ]
    agree(equations.hidden_error(*f32(W_next, delta_next, sigma_prime)), expected)


def test_BP3_is_the_mean_over_examples_of_error_times_input():
    expected = [
        [sum(delta[j, i] * a_prev[k, i] for i in range(m)) / m for k in range(p)] for j in range(n)
    ]
    agree(equations.weight_gradient(*f32(delta, a_prev)), expected)


def test_BP4_is_the_mean_over_examples_of_the_error():
    agree(equations.bias_gradient(*f32(delta)), [[sum(delta[j]) / m] for j in range(n)])


WRONG = {
    "BP1 without σ′": {"output_error": lambda g, s: g},
    "BP1 with the sign turned": {"output_error": lambda g, s: -g * s},
    "BP1 divided by m, which BP3 and BP4 do": {"output_error": lambda g, s: g * s / g.shape[1]},
    "BP1 times 2, for a cost without the half": {"output_error": lambda g, s: 2 * g * s},
    "BP1 averaged over all elements": {"output_error": lambda g, s: g * s / g.shape[0]},
    "BP2 without the transpose": {"hidden_error": lambda W, d, s: W @ d * s},
    "BP2 without σ′": {"hidden_error": lambda W, d, s: W.T @ d},
    "BP2 with σ′ of σ′": {"hidden_error": lambda W, d, s: W.T @ d * s * (1 - s)},
    "BP2 with σ′ before the weights": {"hidden_error": lambda W, d, s: W.T @ (d * s)},
    "BP2 with one path of the sum": {"hidden_error": lambda W, d, s: W[:1].T @ d[:1] * s},
    "BP2 with W's inverse": {"hidden_error": lambda W, d, s: np.linalg.inv(W) @ d * s},
    "BP3 summed, not averaged": {"weight_gradient": lambda d, a: d @ a.T},
    "BP3 transposed": {"weight_gradient": lambda d, a: a @ d.T / d.shape[1]},
    "BP3 of the first example only": {"weight_gradient": lambda d, a: d[:, :1] @ a[:, :1].T},
    "BP3 divided by n": {"weight_gradient": lambda d, a: d @ a.T / d.shape[0]},
    "BP4 summed, not averaged": {"bias_gradient": lambda d: d.sum(1, keepdims=True)},
    "BP4 over the neurons": {"bias_gradient": lambda d: d.mean(0)[: d.shape[0], None]},
    "BP4 forgotten": {"bias_gradient": lambda d: 0 * d[:, :1]},
}
SQUARE = Network((4, 4, 4, 4), hidden="tanh", output="sigmoid")


def equals_jax_grad(**equation) -> bool:
    """The law: the algorithm with these equations gives jax.grad's gradients (float64)."""
    params = init(SQUARE, jax.random.key(0), "float64")
    x = jax.random.normal(jax.random.key(1), (4, 6), "float64")
    y = jax.random.uniform(jax.random.key(2), (4, 6), "float64")
    reference = jax.grad(loss, argnums=1)(SQUARE, params, x, y)
    _, found = oracle.squared_error_backprop(
        params, x, np.asarray(y), "tanh", "sigmoid", **equation
    )
    return all(
        np.linalg.norm(f - r) <= 1e-12 * np.linalg.norm(r)
        for f_layer, r_layer in zip(found, reference, strict=True)
        for f, r in zip(f_layer, r_layer, strict=True)
    )


def test_the_four_equations_give_jax_grads_gradients(x64):
    assert equals_jax_grad()


def test_the_librarys_own_equations_do_so_in_the_oracles_algorithm(x64):
    def on_jax_arrays(name):
        return lambda *arrays: getattr(equations, name)(*map(jax.numpy.asarray, arrays))

    assert equals_jax_grad(**{name: on_jax_arrays(name) for name in oracle.EQUATIONS})


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_equation_is_rejected(name, x64):
    assert not equals_jax_grad(**WRONG[name])
