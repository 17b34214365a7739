"""C and ∇ₐC belong together; the simplified output errors are BP1, and finite where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import equations
from jaxbackprop.activations import ACTIVATIONS
from jaxbackprop.losses import LOSSES

A = jnp.array([[0.2, 0.7], [0.5, 0.1], [0.3, 0.2]])
Y = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squared_error", [0.5 * (0.04 + 0.25 + 0.09), 0.5 * (0.09 + 0.01 + 0.04)]),
        ("binary_cross_entropy", [-np.log(0.8 * 0.5 * 0.7), -np.log(0.7 * 0.9 * 0.8)]),
        ("cross_entropy", [-np.log(0.5), -np.log(0.7)]),
    ],
)
def test_the_cost_of_each_example_is_the_one_worked_by_hand(name, expected):
    z = jnp.log(A / (1 - A)) if name == "binary_cross_entropy" else jnp.log(A)
    np.testing.assert_allclose(LOSSES[name].cost(z, A, Y), expected, rtol=1e-6)


PAIRS = [(loss, loss.output or "identity") for loss in LOSSES.values()]


@pytest.mark.parametrize(("loss", "output"), PAIRS, ids=lambda v: getattr(v, "name", v))
def test_the_output_error_is_the_derivative_of_the_cost_by_the_logits(loss, output, x64):
    """Against central differences, in float64."""
    z = jax.random.normal(jax.random.key(0), (3, 4), "float64")
    y = jax.nn.one_hot(jnp.array([0, 2, 1, 1]), 3, dtype="float64").T
    sigma = ACTIVATIONS[output]
    a, h = sigma.value(z), 1e-5
    error = loss.error or (
        lambda a, y: equations.output_error(loss.gradient(a, y), sigma.derivative(z, a))
    )
    for j in range(3):
        step = jnp.zeros((3, 1)).at[j].set(h)
        up, down = (loss.cost(z + s, sigma.value(z + s), y) for s in (step, -step))
        np.testing.assert_allclose(error(a, y)[j], (up - down) / (2 * h), atol=1e-9)


def test_binary_cross_entropys_error_is_BP1_simplified(x64):
    loss, sigma = LOSSES["binary_cross_entropy"], ACTIVATIONS["sigmoid"]
    z = jax.random.normal(jax.random.key(0), (3, 4), "float64")
    a, y = sigma.value(z), jax.random.uniform(jax.random.key(1), (3, 4), "float64")
    long_way = equations.output_error(loss.gradient(a, y), sigma.derivative(z, a))
    np.testing.assert_allclose(loss.error(a, y), long_way, rtol=1e-12)


def test_softmax_cross_entropys_error_is_the_jacobian_times_the_cost_gradient(x64):
    loss = LOSSES["cross_entropy"]
    a = ACTIVATIONS["softmax"].value(jax.random.normal(jax.random.key(0), (3, 4), "float64"))
    y = jax.random.uniform(jax.random.key(1), (3, 4), "float64")  # columns that do not sum to 1
    for i in range(4):
        jacobian = np.diag(a[:, i]) - np.outer(a[:, i], a[:, i])
        np.testing.assert_allclose(
            loss.error(a, y)[:, i], jacobian.T @ loss.gradient(a, y)[:, i], rtol=1e-12
        )


@pytest.mark.parametrize("name", ["binary_cross_entropy", "cross_entropy"])
@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_cost_and_error_are_finite_and_right_at_extreme_logits(name, logit):
    loss = LOSSES[name]
    z = jnp.array([[logit], [0.0]])
    y = jnp.array([[1.0], [0.0]])
    a = ACTIVATIONS[loss.output].value(z)
    with mpmath_digits():
        expected = exact_cost(name, logit)
    np.testing.assert_allclose(loss.cost(z, a, y), [expected], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(loss.error(a, y), a - y)
    assert np.isfinite(loss.error(a, y)).all()


def soft_cost(z, y):
    """−Σ y log softmax(z) in 50 digits."""
    import mpmath

    with mpmath.workdps(50):
        z, y = ([mpmath.mpf(float(each)) for each in column] for column in (z, y))
        total = mpmath.log(sum(mpmath.exp(each) for each in z))
        return float(sum(b * (total - a) for a, b in zip(z, y, strict=True)))


def without_the_shift(z, a, y):
    return jnp.sum(y, axis=0) * jax.nn.logsumexp(z, axis=0) - jnp.sum(y * z, axis=0)


def without_the_sum_of_y(z, a, y):
    return jax.nn.logsumexp(z, axis=0) - jnp.sum(y * z, axis=0)


def test_cross_entropy_is_exact_for_soft_targets_and_logits_far_from_0():
    z = jnp.array([[1e6, 0.5, -3e4], [1e6 + 1, -2.0, -3e4 - 90], [1e6 + 2, 1.0, -3e4 - 9]])
    y = jnp.array([[0.2, 3.0, 0.9], [0.3, 0.0, 0.05], [0.5, 1.0, 0.05]])  # one sums to 4
    expected = [soft_cost(*columns) for columns in zip(z.T, y.T, strict=True)]
    np.testing.assert_allclose(LOSSES["cross_entropy"].cost(z, y, y), expected, rtol=3e-7)
    for wrong in (without_the_shift, without_the_sum_of_y):
        assert not np.allclose(wrong(z, y, y), expected, rtol=1e-3), wrong.__name__


def mpmath_digits():
    import mpmath

    return mpmath.workdps(120)


def exact_cost(name, logit):
    import mpmath

    own = mpmath.log(1 + mpmath.exp(-logit))
    return float(own + mpmath.log(2) if name == "binary_cross_entropy" else own)
