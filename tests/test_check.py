"""Comparisons name what differs, where and why; checks tell right, wrong and undecidable apart."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import build

import jaxbackprop
from jaxbackprop.check import (
    Comparison,
    check_gradients,
    compare,
    differences,
    numerical_gradient,
    progress,
)


def gradients(seed=0, dtype="float32"):
    """Two layers and a list, as some library might return them."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape).astype(dtype)  # noqa: E731
    return {"W": [draw(4, 4), draw(3, 4)], "b": [draw(4, 1), draw(3, 1)]}


# compare


def test_equal_gradients_pass_and_rounding_is_allowed():
    reference = gradients()
    assert compare(reference, reference).ok
    nudged = jax.tree.map(lambda v: v * (1 + np.finfo(v.dtype).eps), reference)
    assert compare(reference, jax.tree.map(np.float32, nudged)).ok


@pytest.mark.parametrize(("times", "ok"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_bound_is_normwise_8_eps_by_depth_plus_1(dtype, times, ok):
    reference = np.full(100, 1, dtype)
    error = 8 * 11 * np.finfo(dtype).eps * times * 10  # of the norm, 10, in one entry
    candidate = reference.copy()
    candidate[3] += np.asarray(error, dtype)
    assert compare(reference, candidate, depth=10).ok == ok
    assert compare(reference, candidate, tolerance=1.05 * float(error) / 10).ok


def test_a_zero_reference_needs_an_exact_zero():
    assert compare(np.zeros(3), np.zeros(3)).ok
    assert not compare(np.zeros(3), np.array([0, 1e-300, 0])).ok


@pytest.mark.parametrize("nothing", [(), {}, np.zeros((0, 3))])
def test_a_comparison_of_no_numbers_fails(nothing):
    result = compare(nothing, nothing)
    assert not result.ok
    assert "nothing was compared" in str(result)


@pytest.mark.parametrize("library", ["jax.numpy", "torch"])
def test_arrays_of_any_library_are_compared(library):
    kind = pytest.importorskip(library).asarray
    reference = gradients()
    assert compare(reference, jax.tree.map(kind, reference)).ok
    assert compare(jax.tree.map(kind, reference), reference).ok
    wrong = jax.tree.map(lambda v: kind(2 * v), reference)
    assert not compare(reference, wrong).ok


def test_tensors_in_bfloat16_that_require_gradients_are_compared():
    torch = pytest.importorskip("torch")
    half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    assert compare(jnp.ones(3, "bfloat16"), half).ok
    assert not compare(jnp.ones(3, "bfloat16"), -half).ok


def test_the_report_shows_each_leaf_the_worst_entry_and_both_values():
    reference = gradients()
    wrong = jax.tree.map(np.copy, reference)
    wrong["W"][1][2, 3] += 0.5
    result = compare(reference, wrong, names=("jax.grad", "kernel"))
    text = str(result)
    for name in ("W[0]", "W[1]", "b[0]", "b[1]", "float32", "cpu", "matmul"):
        assert name in text
    value, expected = wrong["W"][1][2, 3], reference["W"][1][2, 3]
    assert f"W[1][2, 3]: kernel {value:+.6e}, jax.grad {expected:+.6e}" in text
    assert "FAILED: 1 of 4 leaves, 35 numbers" in text
    assert "W[1] is wrong at W[1][2, 3], the rest is right" in text
    assert "1/12" in text


def test_the_report_fits_80_columns_whatever_the_names():
    name = "a_module_with_quite_a_long_name" * 3
    reference = {name: {"kernel": np.ones((1000, 1000), "float32"), "bias": np.ones(3, "float32")}}
    wrong = jax.tree.map(lambda v: -v, reference)
    for result in (compare(reference, reference), compare(reference, wrong)):
        table = [line for line in str(result).splitlines() if line.startswith(("ok", "BAD", " "))]
        assert max(map(len, table)) <= 80
        assert max(len(line) for line in str(result).splitlines() if name not in line) <= 80


def test_the_verdict_serves_scripts_and_tests():
    right, wrong = compare(1.0, 1.0), compare(1.0, 2.0)
    assert (right.ok, right.exit_status) == (True, 0)
    assert (wrong.ok, wrong.exit_status) == (False, 1)
    right.raise_if_failed()
    with pytest.raises(AssertionError, match="FAILED"):
        wrong.raise_if_failed()


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"W": 0.0}, r"leaf b of reference has no counterpart in candidate"),
        ({"W": 0.0, "b": 0.0, "c": 0.0}, r"leaf c of candidate has no counterpart"),
        ({"W": 0.0, "b": None}, r"leaf b of reference has no counterpart"),
        ({"W": 0.0, "b": np.ones((3, 1))}, r"leaf b.*shape \(\), candidate \(3, 1\)"),
        ({"W": 0.0, "b": np.float16(0)}, r"leaf b: reference is float32, candidate float16"),
        ({"W": 0, "b": 0.0}, r"candidate: leaf W holds int32"),
        ({"W": 0.0, "b": "x"}, r"candidate: leaf b holds str"),
    ],
)
def test_forms_that_differ_are_refused_naming_the_leaf(candidate, message):
    with pytest.raises(ValueError, match=message):
        compare({"W": 0.0, "b": 0.0}, candidate)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        ((3, 1), (3, 7), "not summed over axis 1"),
        ((3,), (7, 3), "not summed over the leading axes"),
        ((3, 2), (2, 3), "transposed"),
        ((3, 2), (6,), "reshaped"),
    ],
)
def test_a_difference_of_shapes_is_explained(reference, candidate, message):
    with pytest.raises(ValueError, match=message):
        compare(np.ones(reference), np.ones(candidate))


def test_containers_that_differ_are_refused():
    with pytest.raises(ValueError, match="tuple in reference, list in candidate"):
        compare((1.0, 2.0), [1.0, 2.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_reported_as_such(value):
    reference = gradients()
    wrong = jax.tree.map(np.copy, reference)
    wrong["W"][0][1, 1] = value
    for result in (compare(reference, wrong), compare(wrong, wrong), compare(wrong, reference)):
        assert not result.ok
        assert [finding.kind for finding in result.findings] == ["not finite"]
        assert re.search(r"BAD +W\[0\] +4×4 +not +finite", str(result))


# check_gradients


def cubic(v):
    return jnp.sum(v**3) + v[0] * v[1]


V = np.array([0.7, -1.2, 0.4], "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_right_gradient_passes_in_every_precision(dtype):
    assert check_gradients(cubic, jnp.asarray(V, dtype)).ok


def test_a_right_gradient_passes_in_float64_within_1e_10(x64):
    v = jnp.asarray(V, "float64")
    gradient = jax.grad(cubic)(v)
    assert check_gradients(cubic, v, gradient=gradient).ok
    assert not check_gradients(cubic, v, gradient=gradient * (1 + 1e-9)).ok


def test_a_wrong_custom_vjp_is_caught_and_named():
    @jax.custom_vjp
    def product(W, x):
        return W @ x

    product.defvjp(lambda W, x: (W @ x, (W, x)), lambda kept, d: (d @ kept[1].T, kept[0] @ d))
    W, x = jax.random.normal(jax.random.key(0), (2, 4, 4))
    f = lambda W, x: jnp.sum(jnp.sin(product(W, x)))  # noqa: E731
    assert check_gradients(f, W, x).ok  # the rule of the first argument is right
    result = check_gradients(f, W, x, argnums=(0, 1))
    assert [leaf.name for leaf in result.leaves if not leaf.ok] == ["[1]"]


def test_the_gradient_may_be_a_function_of_the_arguments():
    assert check_gradients(cubic, jnp.asarray(V), gradient=jax.grad(cubic)).ok


def test_the_taylor_remainder_falls_as_h2_when_right_and_h_when_wrong(x64):
    v = jnp.asarray(V, "float64")
    rates = [
        float(re.search(r"Taylor remainder: h\^(\d\.\d+)", str(result))[1])  # type: ignore[index]
        for result in (
            check_gradients(cubic, v),
            check_gradients(cubic, v, gradient=1.01 * jax.grad(cubic)(v)),
        )
    ]
    np.testing.assert_allclose(rates, [2, 1], atol=0.1)


def test_functions_of_numpy_are_checked():
    f = lambda v: float(np.sum(np.sin(v)))  # noqa: E731
    assert check_gradients(f, V, gradient=np.cos(V)).ok
    assert not check_gradients(f, V, gradient=np.sin(V)).ok


def test_functions_of_torch_are_checked():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(V, requires_grad=True)
    torch.sin(tensor).sum().backward()
    assert check_gradients(lambda v: torch.sin(v).sum(), tensor, gradient=tensor.grad).ok
    assert not check_gradients(lambda v: torch.sin(v).sum(), tensor, gradient=-tensor.grad).ok


def test_python_control_flow_on_values_is_allowed():
    f = lambda v: v[0] ** 2 if v[1] < 0 else v[0]  # noqa: E731
    assert check_gradients(f, jnp.asarray(V)).ok


def test_a_function_that_takes_no_float64_is_checked_in_its_own_precision():
    def f(v):
        if v.dtype != np.float32:
            raise TypeError("float32 only")
        return np.sum(np.asarray(v) ** 3) + v[0] * v[1]

    gradient = np.asarray(jax.grad(cubic)(V))
    result = check_gradients(f, V, gradient=gradient)
    assert result.ok
    assert "float32 only" in str(result)
    assert not check_gradients(f, V, gradient=1.01 * gradient).ok


def test_a_gradient_that_underflows_is_told_from_one_that_is_missing():
    v = np.full(3, 0.5, "float16")
    f = lambda v: 1e-4 * (1e-4 * jnp.sum(v))  # noqa: E731
    result = check_gradients(f, v, gradient=np.zeros(3, "float16"))
    assert [finding.kind for finding in result.findings] == ["underflow"]


def test_precision_lost_inside_the_function_is_noticed():
    f = lambda v: cubic(v.astype("float32"))  # noqa: E731
    assert check_gradients(f, jnp.asarray(V)).ok
    assert not check_gradients(f, jnp.asarray(V), gradient=1.01 * jax.grad(f)(V)).ok


def test_large_arguments_are_checked_along_random_directions():
    W = jax.random.normal(jax.random.key(0), (60, 60)) / 8
    params = {"W": W, "b": jnp.ones((60, 1))}
    f = lambda p: jnp.sum(jnp.tanh(p["W"] @ p["b"] + p["b"]))  # noqa: E731
    result = check_gradients(f, params)
    assert result.ok
    assert result.compared == 64
    g = jax.grad(f)(params)
    for wrong, kind in (({**g, "W": g["W"].T}, "transposed"), ({**g, "W": 3 * g["W"]}, "factor")):
        result = check_gradients(f, params, gradient=wrong)
        assert [finding.kind for finding in result.findings] == [kind]


@pytest.mark.parametrize(("at_kink", "ok"), [(-1, True), (0, True), (0.5, True), (7, False)])
def test_at_a_kink_what_lies_between_the_one_sided_slopes_is_right(at_kink, ok):
    v = jnp.array([1.0, 0.0, -2.0])
    gradient = jnp.array([1.0, at_kink, -1.0])
    result = check_gradients(lambda v: jnp.sum(jnp.abs(v)), v, gradient=gradient)
    assert result.ok == ok
    assert [kink[0] for kink in result.leaves[0].kinks] == ["array[1]"]
    assert f"{'between' if ok else 'outside'} the one-sided slopes [-1, 1]" in str(result)
    assert [f.kind for f in result.findings] == ([] if ok else ["outside a kink"])


def test_a_function_that_is_nothing_but_kinks_is_held_to_its_slopes():
    f = lambda v: jnp.sum(jnp.maximum(v, 0))  # noqa: E731
    for value in (0.0, 0.5, 1.0):
        assert check_gradients(f, jnp.zeros(3), gradient=jnp.full(3, value)).ok
    for value in (-0.01, 1.01, 7.0):
        assert not check_gradients(f, jnp.zeros(3), gradient=jnp.full(3, value)).ok


@pytest.mark.parametrize("constant", [0.0, 1.0, -300.0])
@pytest.mark.parametrize("power", [2, 3, 4])
def test_a_stationary_point_is_no_kink(power, constant):
    f = lambda v: jnp.sum(v**power) + constant  # noqa: E731
    right = check_gradients(f, jnp.zeros(2))
    assert right.ok, right
    assert right.compared == 2
    assert right.leaves[0].kinks == right.leaves[0].undecided == ()
    assert not check_gradients(f, jnp.zeros(2), gradient=[5.0, 5.0]).ok


def test_a_least_squares_fit_at_its_optimum_is_compared():
    A = jax.random.normal(jax.random.key(0), (9, 3))
    y = A @ jnp.ones(3)
    f = lambda v: jnp.mean((A @ v - y) ** 2)  # noqa: E731
    assert check_gradients(f, jnp.ones(3)).ok
    assert not check_gradients(f, jnp.ones(3), gradient=jnp.array([1e-3, 0, 0])).ok


# the same function in float64


DRAWS = {
    "normal": lambda v: jnp.sum(v * jax.random.normal(KEY, v.shape)),
    "bernoulli": lambda v: jnp.sum(v**2 * jax.random.bernoulli(KEY, 0.5, v.shape)),
    "randint": lambda v: jnp.sum(jnp.sin(v[jax.random.randint(KEY, (5,), 0, 3)])),
    "gumbel": lambda v: jnp.max(v + jax.random.gumbel(KEY, v.shape)) ** 2,
    "permutation": lambda v: jnp.dot(v, jax.random.permutation(KEY, jnp.arange(3.0))),
    "in a scan": lambda v: jax.lax.scan(
        lambda c, k: (jnp.sin(c + jax.random.normal(k, (3,))), None), v, jax.random.split(KEY, 4)
    )[0].sum(),
}
KEY = jax.random.key(4)


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_drawn_once(name):
    f, v = DRAWS[name], jnp.asarray(V)
    assert check_gradients(f, v).ok
    assert not check_gradients(f, v, gradient=1.01 * jax.grad(f)(v)).ok


THRESHOLDS = {
    "a third": lambda v: jnp.where(v * 3 >= jnp.float32(0.3) * 10 / 10 * 3, v, v + 1).sum(),
    "cast": lambda v: jnp.sum(v * (v * 10).astype(int)),
    "argmax of ties": lambda v: v[jnp.argmax(jnp.sin(v) / 3 * 3)] * 2,
    "round": lambda v: jnp.sum(v * jnp.round(v * 5)),
    "stop": lambda v: jnp.sum(v * jax.lax.stop_gradient(jnp.exp(v))),
    "straight through": lambda v: jnp.sum((v + jax.lax.stop_gradient(jnp.round(v) - v)) ** 2),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_decisions_are_those_of_the_function_itself(name):
    f, v = THRESHOLDS[name], jnp.array([0.3, 0.7, 0.1])
    assert check_gradients(f, v).ok, check_gradients(f, v)
    assert not check_gradients(f, v, gradient=1.01 * jax.grad(f)(v)).ok


def test_what_a_linear_solve_stops_of_its_matrix_moves_all_the_same():
    f = lambda A: jnp.sum(jnp.linalg.solve(A + 3 * jnp.eye(3), jnp.ones(3)) ** 2)  # noqa: E731
    A = jax.random.normal(jax.random.key(0), (3, 3))
    assert check_gradients(f, A).ok
    assert not check_gradients(f, A, gradient=1.01 * jax.grad(f)(A)).ok


def test_numbers_of_less_precision_inside_are_no_fault():
    f = lambda v: jnp.sum(jnp.sin(v.astype("bfloat16")).astype("float32") ** 2)  # noqa: E731
    result = check_gradients(f, jnp.asarray(V))
    assert result.ok, result
    assert "it is held to these" in str(result)


def test_a_function_that_draws_anew_is_refused_even_where_two_calls_agree():
    numbers = iter([0, 0, 0, 0, 1, 0, 0, 0, 1] * 100)
    with pytest.raises(ValueError, match="not deterministic"):
        check_gradients(lambda v: float(np.sum(v)) + next(numbers), V, gradient=np.ones(3))


def test_a_function_that_donates_its_argument_is_given_a_copy():
    v = jnp.asarray(V)
    f = jax.jit(lambda v: jnp.sum(v**2), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CPU may not use the buffer
        assert check_gradients(f, v, gradient=2 * v).ok
    assert np.array_equal(v, V)


# what people have


def test_a_finer_gradient_than_the_argument_is_accepted():
    f = lambda v: jnp.sum(v**3)  # noqa: E731
    assert check_gradients(f, jnp.asarray(V), gradient=3 * V.astype("float64") ** 2).ok
    assert check_gradients(f, jnp.asarray(V), gradient=(3 * V**2).tolist()).ok
    assert not check_gradients(f, jnp.asarray(V), gradient=V.astype("float64")).ok


def test_jax_grad_itself_is_called_on_the_function():
    for transform in (jax.grad, jaxbackprop.grad):
        result = check_gradients(cubic, jnp.asarray(V), gradient=transform)
        assert result.ok
        assert "was called on f" in str(result)


def test_modules_of_equinox_and_flax_are_arguments():
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    x = jnp.linspace(-1, 1, 8).reshape(4, 2)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(nnx.tanh(self.first(x))))

    net = Net(nnx.Rngs(0))
    loss = lambda net: jnp.mean(net(x) ** 2)  # noqa: E731
    fresh = lambda: Net(nnx.Rngs(0))  # noqa: E731 a call counts the random numbers drawn
    result = check_gradients(loss, net)
    assert result.ok, result
    assert "first.kernel" in [leaf.name for leaf in result.leaves]
    gradient = nnx.grad(loss)(fresh())
    assert check_gradients(loss, fresh(), gradient=gradient).ok
    wrong = jax.tree.map(lambda g: 1.01 * g, gradient)
    assert not check_gradients(loss, fresh(), gradient=wrong).ok

    mlp = eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(0))
    loss = lambda mlp: jnp.mean(jax.vmap(mlp)(x) ** 2)  # noqa: E731
    assert check_gradients(loss, mlp).ok
    assert check_gradients(loss, mlp, gradient=eqx.filter_grad(loss)(mlp)).ok


# words


def test_does_not_depend_is_said_where_it_does_not():
    v = jnp.zeros(3)
    f = lambda p: jnp.sum(p["used"] ** 2)  # noqa: E731
    result = check_gradients(f, {"used": v, "not": v}, gradient={"used": v + 1, "not": v + 1})
    text = " ".join(str(result).split())
    assert "not should be zero: f does not depend on it" in text
    assert "used should be zero: the slope of f is 0 at this point" in text


def test_a_gradient_summed_over_too_much_is_named():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    f = lambda b: jnp.mean(jnp.sin(x + b) ** 2)  # noqa: E731
    b = jnp.arange(3.0)
    g = jax.grad(f)(b)
    (finding,) = check_gradients(f, b, gradient=jnp.full(3, g.sum())).findings
    assert finding.kind == "summed"
    with pytest.raises(ValueError, match="summed over everything"):
        check_gradients(f, b, gradient=g.sum())
    with pytest.raises(ValueError, match="summed over axis 1"):
        check_gradients(lambda W: jnp.sum(W**2), x, gradient=x.sum(1))


def test_a_row_against_a_column_is_suspicious():
    x, y = jax.random.normal(jax.random.key(0), (5, 2)), jnp.arange(5.0)
    f = lambda w: jnp.mean((x @ w - y) ** 2)  # noqa: E731
    w = jnp.ones((2, 1))
    meant = 2 / 5 * x.T @ (x @ w - y[:, None])
    assert "suspicious: f broadcasts (5,) with (5, 1)" in str(check_gradients(f, w, gradient=meant))


def test_an_index_outside_of_an_array_is_suspicious():
    """jax clamps it, and drops its gradient: of the function that it computes that is no slope."""
    far = jnp.array([5, 1])
    f = lambda v: jax.lax.scan(lambda c, k: (c + v[far][k] * v[0], None), 0.0, jnp.arange(2))[0]  # noqa: E731
    result = check_gradients(f, jnp.asarray(V))
    assert not result.ok
    text = " ".join(str(result).split())
    assert "suspicious: f reads outside of an array of shape (3,) at test_check.py:" in text
    inside = lambda v: jnp.sum(v[jnp.array([2, 1])] * v[0])  # noqa: E731
    wrong = check_gradients(inside, jnp.asarray(V), gradient=jnp.zeros(3))
    assert "suspicious" not in str(wrong)


def test_a_module_that_draws_anew_is_suspicious():
    nnx = pytest.importorskip("flax.nnx")
    net = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    f = lambda net: jnp.mean(net(jnp.ones((2, 3))) ** 2)  # noqa: E731
    assert check_gradients(f, net).ok
    nnx.grad(f)(net)
    of_another_draw = nnx.grad(f)(net)
    assert "f changes [0].layers[1].rngs.count of its arguments" in " ".join(
        str(check_gradients(f, net, gradient=of_another_draw)).split()
    )
    dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    assert "changes" not in str(
        check_gradients(f, dense, gradient=nnx.grad(lambda n: 2 * f(n))(dense))
    )


def test_names_are_whole():
    v = jnp.ones(2)
    names = [f"attention_{k}.{what}.kernel" for k in range(2) for what in ("query", "value")]
    p = {f"attention_{k}": {w: {"kernel": v} for w in ("query", "value")} for k in range(2)}
    result = check_gradients(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)), p)
    assert [leaf.name for leaf in result.leaves] == names
    assert all(name in str(result) for name in names)


def test_vectors_of_equal_eigenvalues_are_given_as_the_reason():
    f = lambda A: jnp.linalg.eigh(A + A.T)[1][0, 0] ** 2  # noqa: E731
    result = check_gradients(f, jnp.eye(3), gradient=jnp.zeros((3, 3)))
    assert "eigenvalues" in str(result)


def test_rounding_that_cancellation_makes_large_is_no_error():
    f = lambda v: jnp.sum(jnp.sin(v)) - jnp.sum(jnp.sin(v[::-1])) + 1e-3 * v[0]  # noqa: E731
    assert check_gradients(f, jnp.asarray(V)).ok
    shifted = lambda v: jax.nn.logsumexp(v - v.mean())  # noqa: E731
    assert check_gradients(shifted, jnp.array([30.0, 30.1, 29.0])).ok


@pytest.mark.parametrize(
    ("f", "v", "gradient", "message"),
    [
        (lambda v: 2 * v, V, None, r"f returns an array of shape \(3,\), expected a scalar"),
        (lambda v: v.sum(), np.arange(3), None, "argument 0: leaf array holds int64"),
        (lambda v: v["k"].sum(), {"k": jnp.arange(3)}, None, r"leaf k holds int32"),
        (lambda v: 1j * v.sum(), V, None, "f returns complex64"),
        (lambda v: jnp.log(v - v).sum(), V, None, "f is -inf at the arguments"),
        (lambda v: v.sum() + np.random.rand(), V, None, "f is not deterministic"),  # noqa: NPY002
        (lambda v: np.sin(v).sum(), V, None, "`gradient` has to be given"),
        (lambda v: v.sum(), V, np.ones((3, 1), "float32"), "leaf array: the argument has shape"),
        (lambda v: v.sum(), V, np.ones(3, "float16"), "is float32, the gradient float16"),
        (lambda v: v[0].sum(), (V,), V, "leaf"),
    ],
)
def test_what_cannot_be_checked_is_refused(f, v, gradient, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(f, v, gradient=gradient)


def test_the_differences_agree_with_plain_central_ones(x64):
    v = jnp.asarray(V, "float64")
    result = check_gradients(cubic, v)
    assert isinstance(result, Comparison)
    np.testing.assert_allclose(result.leaves[0].expected, numerical_gradient(cubic)(v), rtol=1e-8)
    np.testing.assert_allclose(result.leaves[0].expected, jax.grad(cubic)(v), rtol=1e-11)


# rounding, draws, and what is compiled


CANCELLED = (
    (("leaky", ("all_to_all", ("softmax", "integer_cast"))), 50003),
    ((("fori", (("all_to_all", (("vjp_symbolic", ("standardised",)),)),)),), 50213),
)


@pytest.mark.parametrize(("tree", "seed"), CANCELLED)
def test_sums_that_cancel_on_the_way_back_are_no_error(tree, seed):
    each = build(tree, seed)
    assert check_gradients(each.f, *each.args, argnums=(0, 1)).ok
    x, w = jax.grad(each.f, (0, 1))(*each.args)
    wrong = x, {**w, "v": 1.01 * w["v"]}
    assert not check_gradients(each.f, *each.args, gradient=wrong, argnums=(0, 1)).ok


def test_the_bits_of_a_number_are_no_decision():
    tree = (("cond_in_scan", ("ldexp",), ("swish",)), "log1p", "straight_through")
    each = build(tree, 7864132)
    result = check_gradients(each.f, *each.args)
    assert result.ok, result
    assert not check_gradients(each.f, *each.args, gradient=0 * each.args[0]).ok


def test_what_cancels_to_zero_by_rounding_decides_as_it_does_in_float32():
    less = lambda v: jnp.sqrt(1 + v * v) - 1  # noqa: E731
    f = lambda v: jnp.sum(jnp.where(less(v) == 0, 3 * v, v))  # noqa: E731
    v = jnp.array([1e-5, 0.4, 0.7])
    result = check_gradients(f, v)
    assert result.ok, result
    assert "f decides otherwise in float32 than in float64" in str(result)
    assert check_gradients(f, v, gradient=[1.0, 1, 1]).ok  # of f without rounding
    for wrong in ([2.0, 1, 1], [3, 1, 1.01], [3, 1, 3]):
        assert not check_gradients(f, v, gradient=wrong).ok
    at_zero = jnp.zeros(3)  # decided alike in both: no excuse
    assert not check_gradients(lambda v: jnp.sum(jnp.where(v == 0, 0 * v, jnp.sin(v))), at_zero).ok


def test_a_slope_that_converges_by_chance_among_many_kinks_is_looked_at_again(monkeypatch):
    ends = jnp.asarray(np.random.default_rng(0).uniform(-0.1, 0.1, (200, 300)), "float32")
    f = lambda v: jnp.mean(jnp.maximum(v[:, None] - ends, 0))  # noqa: E731
    v = jnp.zeros(200)
    assert check_gradients(f, v).ok
    assert not check_gradients(f, v, gradient=1.01 * jax.grad(f)(v)).ok
    with monkeypatch.context() as patch:  # and is needed here
        patch.setattr(differences, "contradicted", lambda *_: np.zeros(1, bool))
        assert not check_gradients(f, v).ok


def test_a_staircase_wider_than_its_differences_is_told_from_a_slope():
    each = build((("jit", (("scan", ("frexp",)),)),), 60074)
    assert check_gradients(each.f, *each.args).ok


def _masked(v):
    """As contrastive losses do: a mask made in numbers, and ones that are as good as −∞."""
    alike = (jnp.arange(6)[:, None] // 3 == jnp.arange(6) // 3).astype(v.dtype)
    others = jnp.bool_(alike - jnp.eye(6))  # two of each
    scores = jnp.where(others, jnp.outer(v, jnp.cos(v)), -1e5)
    return -jnp.mean(jnp.where(others, jax.nn.log_softmax(scores) * v, 0))


def test_what_rounding_explains_is_no_mask_that_turns():
    v = jax.random.normal(jax.random.key(0), (6,))
    assert check_gradients(_masked, v).ok
    right = jax.grad(_masked)(v)
    for wrong in (1.01 * right, right.at[2].add(0.03 * jnp.linalg.norm(right)), 0.99 * right):
        assert not check_gradients(_masked, v, gradient=wrong).ok


def test_a_sum_that_cancels_is_told_from_an_error_whichever_way_it_is_rounded():
    ends = jnp.array([0.7, -1.1, 0.4])  # the sum of these is rounding
    for x in jnp.linspace(0.1, 2, 12):
        assert check_gradients(lambda x: jnp.sum(x * ends), x).ok


def test_steps_that_fall_on_the_same_places_do_not_hide_a_staircase():
    each = build(("frexp", "dynamic_update"), 7594863)
    x, w = jax.grad(each.f, (0, 1))(*each.args)
    assert check_gradients(each.f, *each.args, gradient=(x, w), argnums=(0, 1)).ok
    assert not check_gradients(each.f, *each.args, gradient=(-x, w), argnums=(0, 1)).ok


def test_steps_below_the_precision_of_f_are_no_proof_of_flatness():
    f = lambda x: jnp.sum(jnp.frexp(1.5 + 0.3 * jnp.sin(x))[0] * jnp.array([0.7, -1.1, 0.4]))  # noqa: E731
    assert check_gradients(f, jnp.zeros(3)).ok


def test_a_dot_that_asks_for_less_precision_is_taken_in_float64():
    less = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    M = jax.random.normal(jax.random.key(0), (3, 3), jnp.bfloat16)
    f = lambda v: jnp.sum(jax.lax.dot(M, v, precision=less, preferred_element_type="float32") ** 2)  # noqa: E731
    result = check_gradients(f, jnp.asarray(V, "bfloat16"))
    assert result.ok
    assert result.leaves[0].kinks == result.leaves[0].undecided == ()


@pytest.mark.parametrize("draw", ["gamma", "loggamma", "dirichlet"])
def test_a_gamma_variate_moves_with_its_distribution(draw):
    f = lambda a: jnp.sum(getattr(jax.random, draw)(KEY, a) ** 2)  # noqa: E731
    a = jnp.array([0.6, 1.0, 2.0])
    result = check_gradients(f, a)
    assert result.ok, result
    assert "moves as jax says, with the distribution" in " ".join(str(result).split())
    assert not check_gradients(f, a, gradient=1.01 * jax.grad(f)(a)).ok


def test_two_places_that_are_swapped_are_caught_along_random_directions():
    v = jnp.arange(3000.0) / 3000
    gradient = np.cos(v)
    gradient[[5, 2000]] = gradient[[2000, 5]]
    assert not check_gradients(lambda v: jnp.sum(jnp.sin(v)), v, gradient=gradient).ok


def test_a_check_inside_a_check_shows_no_second_bar(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.progress(["outer"]) as outer, progress.progress(["inner"]) as inner:
        inner()
        outer()
    with progress.progress(["again"]) as again:
        again()


def test_a_second_check_compiles_nothing_and_sees_what_f_has_become():
    scale = [1.0]
    loss = lambda p, x: scale[0] * jnp.mean(jnp.tanh(x @ p["w"] + p["b"]) ** 2)  # noqa: E731
    draw = lambda k: jax.random.normal(jax.random.key(k), (4, 3))  # noqa: E731
    params = {"w": draw(0).T, "b": jnp.ones(4)}
    other = jax.tree.map(jnp.sin, params), draw(2)
    right, events = jax.grad(loss)(*other), []
    count = lambda event, seconds, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        compiled = []
        for args in ((params, draw(1)), other, other):  # other parameters and data, then the same
            events.clear()
            assert check_gradients(loss, *args).ok
            compiled.append(events.count("/jax/core/compile/backend_compile_duration"))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0]
    scale[0] = 3.0
    assert not check_gradients(loss, *other, gradient=right).ok
    assert check_gradients(loss, *other).ok


def test_a_second_check_traces_the_function_and_its_gradient_once():
    calls = []
    f = lambda v: calls.append(v) or cubic(v)  # noqa: E731
    assert check_gradients(f, jnp.asarray(V)).ok
    assert len(calls) > 2  # to see that it is the same each time
    calls.clear()
    assert check_gradients(f, jnp.asarray(V)).ok
    assert len(calls) == 2


def test_an_argument_without_numbers_has_nothing_wrong():
    x = {"none": jnp.zeros((0, 3)), "some": jnp.arange(3.0)}
    assert check_gradients(lambda x: jnp.sum(x["none"]) + jnp.sum(x["some"] ** 2), x).ok


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.01, False)])
def test_a_callback_gets_the_numbers_that_it_asked_for(factor, passes):
    @jax.custom_vjp
    def sine(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(np.sin, shape, x, vmap_method="expand_dims")

    sine.defvjp(lambda x: (sine(x), x), lambda x, g: (factor * g * jnp.cos(x),))
    found = check_gradients(lambda x: jnp.sum(sine(x) ** 2), jnp.array([0.3, -0.7, 1.1]))
    assert found.ok is passes
