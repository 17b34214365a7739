"""Central differences: 2n evaluations, an error of the order of h², and no autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop.check import numerical_gradient


def test_takes_two_evaluations_a_number():
    calls = []

    def f(w):
        jax.debug.callback(lambda _: calls.append(1), w[0])
        return jnp.sum(w**2)

    numerical_gradient(f)(jnp.arange(5.0)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 2 * 5


def test_agrees_with_a_gradient_known_in_closed_form(x64):
    w = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
    gradient = numerical_gradient(lambda w: jnp.sum(jnp.sin(w["a"])) + jnp.exp(w["b"][0, 0]))(w)
    np.testing.assert_allclose(gradient["a"], np.cos([1.0, -2.0]), rtol=1e-9)
    np.testing.assert_allclose(gradient["b"], [[np.exp(0.5)]], rtol=1e-9)


def test_is_exact_but_for_rounding_on_a_parabola_and_one_sided_differences_are_not(x64):
    w = jnp.array([3.0])
    f = lambda w: w[0] ** 2  # noqa: E731
    assert abs(numerical_gradient(f)(w)[0] - 6) < 1e-9
    h = 1e-5
    assert abs((f(w + h) - f(w)) / h - 6) > 1e-6


def test_float32_steps_reach_the_stated_accuracy():
    w = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(
        numerical_gradient(lambda w: jnp.sum(jnp.tanh(w)))(w), 1 - jnp.tanh(w) ** 2, atol=2e-4
    )


def test_argnums_chooses_the_argument(x64):
    f = lambda a, b: a * b**2  # noqa: E731
    assert abs(numerical_gradient(f, argnums=1)(3.0, 2.0) - 12) < 1e-8


@pytest.mark.parametrize(
    ("f", "arg", "message"),
    [
        (jnp.sum, jnp.arange(3), "argument 0 holds int32"),
        (jnp.sum, jnp.ones(3, "complex64"), "argument 0 holds complex64"),
        (lambda w: 2 * w, jnp.ones(3), r"f returns an array of shape \(3,\)"),
        (jnp.sum, jnp.ones(0), "argument 0 holds no numbers"),
    ],
)
def test_what_has_no_numerical_gradient_is_refused(f, arg, message, untyped):
    with pytest.raises(ValueError, match=message):
        numerical_gradient(f)(arg)
