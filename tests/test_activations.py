"""σ′ is the derivative of σ: equal to jax.grad's, and for the precise forms closer to the truth."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from gates import eps

from jaxbackprop.activations import ACTIVATIONS

ELEMENTWISE = [a for name, a in ACTIVATIONS.items() if name != "softmax"]
OTHER_CHOICE_AT_ZERO = {"relu_one"}
z = jnp.linspace(-6, 6, 241)


def slopes(activation, z):
    return activation.derivative(z, activation.value(z))


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_derivative_equals_jax_grads(activation, dtype, x64):
    points = z.astype(dtype)
    if activation.name in OTHER_CHOICE_AT_ZERO:
        points = points[points != 0]
    expected = jax.vmap(jax.grad(activation.value))(points)
    found = slopes(activation, points)
    assert found.dtype == expected.dtype
    # A cancelling form is exact to eps of its largest term, which is of the order of 1.
    np.testing.assert_allclose(
        found.astype("float64"), expected.astype("float64"), rtol=0, atol=16 * eps(dtype)
    )


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda a: a.name)
def test_the_derivative_is_the_limit_of_central_differences(activation, x64):
    points = jnp.linspace(-6, 6, 240, dtype="float64")  # none at the kink
    h = 1e-5
    expected = (activation.value(points + h) - activation.value(points - h)) / (2 * h)
    np.testing.assert_allclose(slopes(activation, points), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wrong", ["sigmoid", "tanh", "relu", "gelu"])
def test_another_activations_derivative_is_rejected(wrong, x64):
    points = jnp.linspace(-6, 6, 240, dtype="float64")
    for activation in ELEMENTWISE:
        if wrong not in activation.name and activation.name != "relu_one":
            expected = jax.vmap(jax.grad(activation.value))(points)
            found = ACTIVATIONS[wrong].derivative(points, activation.value(points))
            if not (wrong == "relu" and activation.name == "identity"):
                assert not np.allclose(found, expected, rtol=1e-3, atol=1e-3), activation.name


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda a: a.name)
def test_from_a_says_whether_z_is_read(activation):
    points = z + 0.01
    a = activation.value(points)
    without_z = activation.derivative(jnp.full_like(points, jnp.nan), a)
    reads_z = not np.array_equal(without_z, activation.derivative(points, a))
    assert reads_z == (not activation.from_a)


def ulps(found, exact):
    """Distance from the exact values, in units in the last place of float32."""
    exact = [mpmath.mpf(e) for e in exact]
    return [
        float(abs(mpmath.mpf(float(f)) - e) / mpmath.mpf(float(np.spacing(np.float32(float(e))))))
        for f, e in zip(found, exact, strict=True)
    ]


def exact_sigmoid_slope(z):
    with mpmath.workdps(60):
        e = mpmath.exp(-mpmath.mpf(float(z)))
        return e / (1 + e) ** 2


def exact_tanh_slope(z):
    with mpmath.workdps(100):
        return 1 / mpmath.cosh(mpmath.mpf(float(z))) ** 2


SATURATING = jnp.concatenate([jnp.linspace(-79.9, 79.9, 1601), jnp.linspace(-1, 1, 401)])


@pytest.mark.parametrize(
    ("name", "exact", "points"),
    [
        ("sigmoid", exact_sigmoid_slope, SATURATING),
        ("tanh", exact_tanh_slope, SATURATING / 2),
        ("tanh", exact_tanh_slope, SATURATING[jnp.abs(SATURATING) < 43]),
    ],
)
def test_the_precise_derivative_is_within_4_ulp_where_the_cheap_one_is_not(name, exact, points):
    truth = [exact(point) for point in points]
    assert max(ulps(slopes(ACTIVATIONS[f"precise_{name}"], points), truth)) < 4
    assert max(ulps(slopes(ACTIVATIONS[name], points), truth)) > 1e5


def test_the_precise_tanh_slope_beyond_43_is_below_the_smallest_normal_number():
    assert exact_tanh_slope(44.5) < float(np.finfo(np.float32).tiny)
    assert slopes(ACTIVATIONS["precise_tanh"], jnp.float32(79)) < np.finfo(np.float32).tiny


def test_the_precise_sigmoid_slope_has_no_false_zero():
    assert (slopes(ACTIVATIONS["precise_sigmoid"], jnp.linspace(-80.0, 80.0, 999)) > 0).all()
    assert slopes(ACTIVATIONS["sigmoid"], jnp.float32(20)) == 0


@pytest.mark.parametrize(
    ("name", "at_zero"), [("relu", 0), ("relu_one", 1), ("leaky_relu", 1), ("elu", 1)]
)
def test_the_choice_at_the_kink_is_the_stated_one(name, at_zero):
    assert slopes(ACTIVATIONS[name], jnp.float32(0)) == at_zero
    if name != "relu_one":
        assert jax.grad(ACTIVATIONS[name].value)(0.0) == at_zero


def test_softmax_refuses_to_be_used_element_by_element():
    with pytest.raises(ValueError, match="Jacobian"):
        ACTIVATIONS["softmax"].derivative(z, z)
