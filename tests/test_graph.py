"""Backpropagation through any JAX function: API, learners' cases, structure, compositions."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbackprop.graph
from jaxbackprop.graph import UnsupportedPrimitive, grad, value_and_grad, vjp
from jaxbackprop.graph.rules import RULES

X = jax.random.normal(jax.random.key(0), (5, 4), jnp.float32)
W = jax.random.normal(jax.random.key(1), (4, 4), jnp.float32)


def agree(found, expected, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(abs(b).max())),
        found,
        expected,
    )


# --- the text's cases ---


def test_the_slope_of_sin_of_x_squared_at_2():
    value, slope = value_and_grad(lambda x: jnp.sin(x**2))(2.0)
    assert f"{value:.4f} {slope:.4f}" == "-0.7568 -2.6146"


def test_contributions_sum_where_paths_meet():
    """f = (x + y)·y at (2, 3): ∂f/∂y has a path through each factor, 3 + 5."""
    assert grad(lambda x, y: (x + y) * y, argnums=(0, 1))(2.0, 3.0) == (3.0, 8.0)


def test_the_multivariate_chain_rule():
    """z = x² y with x = cos t, y = sin t: dz/dt = 2xy·(−sin t) + x²·cos t."""
    t = 0.7
    slope = grad(lambda t: jnp.cos(t) ** 2 * jnp.sin(t))(t)
    assert slope == pytest.approx(-2 * np.cos(t) * np.sin(t) ** 2 + np.cos(t) ** 3, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "f", "expected"),
    [
        ("b = a + a", lambda a: a + a, 2.0),
        ("c = b + b", lambda a: (a + a) + (a + a), 4.0),
        ("a · a", lambda a: a * a, 6.0),
        ("a at two depths", lambda a: a * (a * a + a), 33.0),
        ("the input itself", lambda a: a, 1.0),
        ("a constant", lambda a: 7.0 + 0 * a, 0.0),
        ("unused", lambda a: jnp.float32(7), 0.0),
    ],
)
def test_the_cases_that_learners_trip_on(name, f, expected):
    assert grad(f)(3.0) == expected


def test_the_same_array_given_twice_has_a_gradient_for_each_place():
    assert grad(lambda x, y: x * y**2, argnums=(0, 1))(3.0, 3.0) == (9.0, 18.0)


def test_pulling_back_twice_gives_the_same():
    _, pullback = vjp(lambda x: jnp.tanh(x @ W), X)
    ct = jnp.ones_like(X)
    jax.tree.map(np.testing.assert_array_equal, pullback(ct), pullback(ct))


# --- the form of jax's own ---


def test_argnums_pytrees_and_aux_are_as_in_jax():
    def f(params, x, flag):
        y = jnp.tanh(params["w"] @ x + params["b"])
        return (y**2).sum() if flag else y.sum(), {"y": y}

    args = ({"w": W, "b": X[0]}, X[1], True)
    agree(grad(f, has_aux=True)(*args), jax.grad(f, has_aux=True)(*args))
    options = {"argnums": (1, 0), "has_aux": True}
    agree(value_and_grad(f, **options)(*args), jax.value_and_grad(f, **options)(*args))


def test_integer_leaves_have_the_gradient_float0_in_vjp():
    _, pullback = vjp(lambda i, x: x[i], jnp.int32(1), X[0])
    of_index, of_x = pullback(jnp.float32(1))
    assert of_index.dtype == jax.dtypes.float0
    agree(of_x, jnp.array([0.0, 1, 0, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad(jnp.tanh)(X), r"scalar-output functions, got the output shape \(5, 4\)"),
        (lambda: grad(lambda i: i * 1.0)(3), "argument 0 is int32"),
        (lambda: grad(lambda p: p["i"] * 1.0)({"i": jnp.arange(3)}), r"argument 0\['i'\] is int32"),
        (lambda: grad(lambda s: 1.0)("s"), "argument 0 is str"),
        (lambda: grad(lambda x: x, argnums=1)(1.0), "argument 1, but the call has 1 positional"),
        (lambda: grad(lambda x: x, has_aux=True)(1.0), r"returns a pair \(value, aux\)"),
        (lambda: grad(lambda x: jnp.int32(x))(1.0), "real outputs, the output is int32"),
        (lambda: vjp(jnp.tanh, X)[1](X[0]), r"the cotangent is float32\[4\], the output float32"),
        (lambda: vjp(jnp.tanh, X)[1]((X, X)), "the cotangent has the structure"),
    ],
)
def test_what_has_no_gradient_is_refused_in_jaxs_terms(call, message, untyped):
    with pytest.raises(TypeError, match=message):
        call()


# --- structure ---


def recurrent(W):
    def step(h, x):
        h = jnp.tanh(W @ h + x)
        return h, (h * 2, x.sum())

    h, (ys, _) = jax.lax.scan(step, jnp.ones(4), X)
    return (ys**2).sum() + h.sum()


def reversed_scan(x):
    return jax.lax.scan(lambda c, r: (c * r.sum(), c + r), 1.0, x, reverse=True)[1].sum()


def nested_scan(W):
    def outer(h, x):
        h, _ = jax.lax.scan(lambda h, _: (jnp.sin(W @ h), None), h, length=3)
        return h + x, h.sum()

    return jax.lax.scan(outer, jnp.ones(4), X)[1].sum()


@jax.custom_vjp
def triple(x):
    return jnp.sin(x)


triple.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, ct: (3 * ct * c,))


def branch(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x.sum(), lambda x: (x * x).sum(), x)


FUNCTIONS = {
    "scan": recurrent,
    "scan in reverse": reversed_scan,
    "scan in a scan": nested_scan,
    "fori_loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * x.mean() + i, 1.0),
    "custom_jvp": lambda x: (jax.nn.relu(x) + jax.nn.softplus(x) + jax.nn.silu(x)).sum(),
    "custom_vjp": lambda x: triple(x).sum(),
    "remat": lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ W)).sum())(x),
    "cond": branch,
    "the other branch": lambda x: branch(-x),
    "switch": lambda x: jax.lax.switch(2, [jnp.sum, jnp.mean, lambda x: x.var()], x),
    "jit in jit": jax.jit(lambda x: jax.jit(jnp.tanh)(x).sum() ** 2),
    "linear solve": lambda x: jnp.linalg.solve(x[:4] + 3 * jnp.eye(4), x[4]).sum(),
    "attention": lambda x: (jax.nn.softmax(x @ x.T, axis=-1) @ x).std(),
    "indexing": lambda x: x[jnp.array([0, 0, -1])].sum() + x[2, 1] ** 2 + x.at[0].add(x[1]).max(),
    "sorting and products": lambda x: jnp.sort(x, 0)[1].sum() + jnp.cumprod(x[0])[2] + x[0].prod(),
    "map": lambda x: jax.lax.map(lambda r: jnp.sin(r).sum(), x).prod(),
}
SECOND_DERIVATIVES = [name for name in FUNCTIONS if name != "custom_vjp"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_equals_jax_grads_eagerly_and_jitted(name):
    f, x = FUNCTIONS[name], W if "scan" in name and name != "scan in reverse" else X
    expected = jax.grad(f)(x)
    agree(grad(f)(x), expected)
    agree(jax.jit(grad(f))(x), expected)


@pytest.mark.parametrize("name", SECOND_DERIVATIVES)
def test_the_gradient_of_the_gradient_equals_jaxs(name):
    f, x = FUNCTIONS[name], W if "scan" in name and name != "scan in reverse" else X
    v = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    def hvp(grad):
        return jax.jit(grad(lambda x: jnp.vdot(grad(f)(x), v)))(x)

    agree(hvp(grad), hvp(jax.grad), rtol=1e-4)


def test_relus_slope_at_0_is_its_rules_not_its_bodys():
    assert grad(jax.nn.relu)(0.0) == 0
    assert grad(lambda x: jnp.maximum(x, 0))(0.0) == 0.5


def test_vmap_of_grad_and_scan_of_grad():
    f = lambda x: jnp.sin(x).sum() * x[0]  # noqa: E731
    expected = jax.vmap(jax.grad(f))(X)
    agree(jax.vmap(grad(f))(X), expected)
    agree(jax.lax.map(grad(f), X), expected)


def test_an_integer_carry_and_one_that_only_later_depends_on_the_input():
    def f(x):
        def step(carry, r):
            i, a, b = carry
            return (i + 1, b, b + r.sum() * i), a

        return jax.lax.scan(step, (0, 1.0, 2.0), x)[1].sum()

    agree(grad(f)(X), jax.grad(f)(X))


def test_a_loop_with_an_unknown_number_of_steps_is_refused_by_line():
    def f(x):
        return jax.lax.while_loop(lambda c: c < 10, lambda c: c * 2, x)

    with pytest.raises(UnsupportedPrimitive, match=r"'while'.*test_graph.py:\d+"):
        grad(f)(1.0)
    agree(grad(lambda x: x + jax.lax.stop_gradient(f(x)))(1.0), jnp.float32(1))


REFUSED = {
    "householder_product": lambda x: jax.lax.linalg.householder_product(x, x[0]),
    "pure_callback": lambda x: jax.pure_callback(np.sin, x, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_a_rule_is_refused_by_name_and_line(name):
    """The line is the user's, also where the operation is deep in jax's own jitted functions."""

    def f(x):
        return REFUSED[name](x).sum()

    with pytest.raises(UnsupportedPrimitive, match=rf"'{name}'.*\(test_graph.py:\d+\)"):
        grad(jax.jit(f))(X[:4])


# --- the loop's memory, and independence ---


def test_a_scan_keeps_of_each_step_only_what_its_walk_reads():
    """tanh(W h + x) is walked back with tanh's output and h: two arrays a step, and no more."""
    jaxpr = jax.make_jaxpr(grad(recurrent))(W)
    ahead = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
    per_step = [v.aval.shape for v in ahead.outvars if v.aval.shape[:1] == (5,)]
    residuals = per_step[2:]  # after the two outputs of the scan itself
    assert len(residuals) <= 3


def test_a_scan_keeps_a_number_and_not_the_slope_that_follows_from_it():
    """σ(1 − σ) and 1 − tanh² are made again from σ and tanh, which their product keeps."""

    def gated(h):
        def step(h, _):
            return jax.nn.sigmoid(h) * jnp.tanh(h), None

        return jax.lax.scan(step, h, length=5)[0].sum()

    jaxpr = jax.make_jaxpr(grad(gated))(X[:4])
    ahead = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert len([v for v in ahead.outvars if v.aval.shape[:1] == (5,)]) == 2


SOURCES = sorted(pathlib.Path(jaxbackprop.graph.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_rule_and_no_walk_asks_autodiff(path):
    forbidden = {"grad", "vjp", "jvp", "linearize", "linear_transpose", "value_and_grad", "jacrev"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id in ("jax", "ad") and node.attr in forbidden)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax."):
            assert not node.module.startswith("jax._src")
        if isinstance(node, ast.ImportFrom) and node.module == "jax":
            assert not forbidden & {name.name for name in node.names}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_walk_runs_where_autodiff_is_out_of_order(name, monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError("autodiff was asked")

    f, x = FUNCTIONS[name], W if "scan" in name and name != "scan in reverse" else X
    expected = jax.grad(f)(x)
    for asked in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose"):
        monkeypatch.setattr(jax, asked, broken)
    agree(grad(f)(x), expected)


WRONG = {
    "mul": lambda cts, outs, x, y, **_: (lambda: cts[0] * x, lambda: cts[0] * y),
    "sin": lambda cts, outs, x, **_: (lambda: -cts[0] * jnp.cos(x),),
    "tanh": lambda cts, outs, x, **_: (lambda: cts[0] * (1 - outs[0]),),
    "exp": lambda cts, outs, x, **_: (lambda: cts[0],),
    "reduce_sum": lambda cts, outs, x, **_: (lambda: jnp.broadcast_to(cts[0] / x.size, x.shape),),
    "sub": lambda cts, outs, x, y: (lambda: cts[0], lambda: cts[0]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_noticed(name, monkeypatch):
    def f(x):
        return jnp.sum(jnp.tanh(x) * jnp.sin(2 * x) - jnp.exp(x))

    x = X[0]
    agree(grad(f)(x), jax.grad(f)(x))
    monkeypatch.setitem(RULES, name, WRONG[name])
    with pytest.raises(AssertionError):
        agree(grad(f)(x), jax.grad(f)(x))
