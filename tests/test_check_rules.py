"""check.rules finds the wrong custom rule by line; check.walk the operation at which two part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbackprop import check
from jaxbackprop.graph.rules import RULES


def ruled(backward, name="ruled"):
    """sin(x) w, with a backward pass of the test's choosing."""

    def function(x, w):
        return jnp.sin(x) * w

    function.__name__ = name
    inner = jax.custom_vjp(function)
    inner.defvjp(lambda x, w: (function(x, w), (x, w)), backward)
    return inner


right = ruled(lambda kept, ct: (ct * jnp.cos(kept[0]) * kept[1], ct * jnp.sin(kept[0])), "right")
wrong = ruled(lambda kept, ct: (ct * jnp.cos(kept[0]), ct * jnp.sin(kept[0])), "wrong")
X, W = jnp.linspace(-1, 1, 3), jnp.array([0.5, 2.0, -1.0])


def names(report):
    return [(rule.name, rule.ok) for rule in report.rules]


def test_each_rule_has_a_line_and_a_verdict():
    f = lambda p: jnp.sum(right(p["x"], p["w"]) + wrong(p["w"], p["x"]))  # noqa: E731
    report = check.rules(f)({"x": X, "w": W})
    assert names(report) == [("right", True), ("wrong", False)]
    assert not report.ok
    assert "BAD wrong (custom_vjp) at test_check_rules.py:" in str(report)
    with pytest.raises(AssertionError, match="BAD wrong"):
        report.raise_if_failed()


def test_a_function_without_rules_says_so():
    report = check.rules(lambda x: jnp.sum(x**2))(X)
    assert report.ok
    assert "no custom rules" in str(report)


INSIDE = {
    "jit": lambda g: jax.jit(g),
    "scan": lambda g: lambda x: lax.scan(lambda c, _: (g(c), None), x, None, length=3)[0],
    "cond": lambda g: lambda x: lax.cond(x[0] < 0, g, jnp.sin, x),
    "switch in scan": lambda g: (
        lambda x: lax.scan(
            lambda c, i: (lax.switch(i, [jnp.sin, g], c), None), x, jnp.array([0, 1, 0])
        )[0]
    ),
    "checkpoint": lambda g: jax.checkpoint(g),
    "vmap": lambda g: lambda x: jax.vmap(g)(jnp.stack([x, 2 * x])).sum(0),
    "another rule": lambda g: lambda x: right(g(x), W),
    "map": lambda g: lambda x: lax.map(g, jnp.stack([x, 2 * x])).sum(0),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_wrong_rule_is_found_wherever_it_stands(name):
    for rule in (right, wrong):
        f = INSIDE[name](lambda x, rule=rule: rule(x, W + 0.1))
        report = check.rules(lambda x: jnp.sum(f(x)))(X)  # noqa: B023
        verdict = dict(names(report))["right" if rule is right else "wrong"]
        assert verdict == (rule is right), report


def test_a_rule_that_is_wrong_at_one_step_of_a_scan_is_found():
    @jax.custom_jvp
    def lame(x):
        return x**2

    @lame.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        return lame(x), jnp.where(x > 5, x, 2 * x) * t

    f = lambda x: lax.scan(lambda c, _: (1.3 * c + 0 * lame(c), lame(c).sum()), x, None, length=9)  # noqa: E731
    report = check.rules(lambda x: f(x)[1].sum())(jnp.ones(2))
    assert not report.ok
    bad = next(rule for rule in report.rules if not rule.ok)
    assert bad.steps[0] >= 7
    assert "scan step" in str(bad)


def test_rules_of_libraries_are_right():
    f = lambda x: jnp.sum(jax.nn.relu(x) + jax.nn.softplus(x) + jax.nn.logsumexp(x))  # noqa: E731
    report = check.rules(f)(jnp.array([0.0, 1.0, -2.0]))
    assert report.ok, report
    assert len(report.rules) >= 2


def settled(backward):
    """The root of y = cos(x y), by as many steps as each number needs, with this way back."""

    def step(x, y):
        return y - (y - jnp.cos(x * y)) / (1 + x * jnp.sin(x * y))

    def root(x):
        def more(carry):
            return (jnp.abs(step(x, carry[0]) - carry[0]) > 1e-6) & (carry[1] < 20)

        near = lax.while_loop(more, lambda c: (step(x, c[0]), c[1] + 1), (jnp.ones_like(x), 0))[0]
        return step(x, near)

    ruled = jax.custom_vjp(root)
    ruled.defvjp(lambda x: (ruled(x), (x, ruled(x))), backward)
    return lambda xs: jnp.sum(jax.vmap(ruled)(xs) ** 2)


def test_each_row_of_a_vmap_has_its_own_number_of_steps():
    def slope(x, y):
        return -y * jnp.sin(x * y) / (1 + x * jnp.sin(x * y))

    sound, lame = settled(lambda kept, ct: (ct * slope(*kept),)), settled(lambda kept, ct: (ct,))
    xs = jnp.array([0.1, 0.9, 1.7])
    assert check.rules(sound)(xs).ok
    assert check.check_gradients(sound, xs).ok
    assert not check.rules(lame)(xs).ok
    assert not check.check_gradients(lame, xs).ok


def test_a_rule_that_stands_inside_a_loop_of_rows_is_found():
    def f(rule, x):
        def row(x):
            start = (x, 0.0)
            return lax.while_loop(lambda c: c[1] < x, lambda c: (rule(c[0], x), c[1] + 1), start)[0]

        return jnp.sum(lax.stop_gradient(jax.vmap(row)(x)) * x)

    xs = jnp.array([0.5, 1.5, 2.5])
    assert [rule.uses for rule in check.rules(lambda x: f(right, x))(xs).rules] == [3]
    assert not check.rules(lambda x: f(wrong, x))(xs).ok


def root(a, tangent_solve=lambda g, y: y / g(jnp.ones_like(y))):
    """y³ + a y = 1, whose slope jax's custom_root gives to one of the places that a is given to."""

    def solve(g, y):
        return lax.fori_loop(0, 20, lambda _, y: y - g(y) / (3 * y**2 + a), y)

    return jnp.sum(lax.custom_root(lambda y: y**3 + a * y - 1, a, solve, tangent_solve))


def test_one_value_given_twice_has_one_gradient():
    a = jnp.array([1.0, 2.0, 3.0])
    report = check.rules(root)(a)
    assert report.ok, report
    assert check.check_gradients(root, a).ok
    twice = lambda g, y: 2 * y / g(jnp.ones_like(y))  # noqa: E731
    assert not check.check_gradients(lambda a: root(a, twice), a).ok
    if report.rules:  # on jax 0.12 it is an operation of another kind, no function with a rule
        assert not check.rules(lambda a: root(a, twice))(a).ok
    double = lambda x: right(x, x) + wrong(x, x)  # noqa: E731
    assert names(check.rules(lambda x: jnp.sum(double(x)))(X)) == [
        ("right", True),
        ("wrong", False),
    ]


def test_a_rule_owes_no_gradient_to_data():
    @jax.custom_vjp
    def loss(logits, target):
        return jnp.sum(jax.nn.softplus(logits) - target * logits)

    loss.defvjp(
        lambda z, y: (loss(z, y), (z, y)),
        lambda kept, ct: (ct * (jax.nn.sigmoid(kept[0]) - kept[1]), None),
    )
    report = check.rules(lambda z, y: loss(z, y))(X, jnp.array([0.0, 1.0, 1.0]))
    assert report.ok, report
    assert not check.rules(lambda z, y: loss(z, y), argnums=(0, 1))(X, X).ok


def test_kernels_count():
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] ** 3

    def cube_of(factor):
        @jax.custom_vjp
        def cube(x):
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x)

        cube.defvjp(lambda x: (cube(x), x), lambda x, ct: (factor * x**2 * ct,))
        return cube

    x = jnp.linspace(0.5, 1, 4)
    for factor, ok in ((3, True), (2, False)):
        cube = cube_of(factor)
        report = check.rules(lambda x: jnp.sum(jnp.sin(cube(x))))(x)  # noqa: B023
        assert names(report) == [("cube", ok)], report


def _kernel_gelu(slope):
    """Jax's default GELU in a kernel, and a rule."""
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x_ref, y_ref):
        y_ref[...] = jax.nn.gelu(x_ref[...])

    @jax.custom_vjp
    def gelu(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x)

    gelu.defvjp(lambda x: (gelu(x), x), lambda x, g: ((g * slope(x)).astype(x.dtype),))
    return lambda x: jnp.sum(jnp.sin(gelu(x)).astype("float32"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("approximate", [True, False])
def test_a_kernel_is_held_to_as_many_digits_as_it_has(dtype, approximate):
    """The slope of the other GELU is off by 1e-3: seen in float32."""
    slope = jax.vmap(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=approximate))))
    x = jax.random.normal(jax.random.key(1), (4, 8), dtype)
    assert check.rules(_kernel_gelu(slope))(x).ok is (approximate or dtype == "bfloat16")
    said = str(check.check_gradients(_kernel_gelu(slope), x))
    assert ("known to no better than 10 %" in said) is (dtype == "bfloat16")


def test_integers_and_symbolic_zeros_are_taken():
    @jax.custom_vjp
    def pick(x, i):
        return x[i] ** 2, i + 1

    def backward(kept, cts):
        x, i = kept
        return jnp.zeros_like(x).at[i].set(2 * x[i] * cts[0]), np.zeros((), jax.dtypes.float0)

    pick.defvjp(lambda x, i: (pick(x, i), (x, i)), backward)
    assert check.rules(lambda x: pick(x, jnp.int32(1))[0])(X).ok


# check.walk


def deep(x):
    x = lax.scan(lambda c, row: (jnp.tanh(c * row), None), x, jnp.ones((3, 3)) * 0.7)[0]
    return jnp.sum(jnp.sin(x) ** 2)


def test_where_all_three_agree_the_walk_is_ok():
    report = check.walk(deep)(X)
    assert report.ok, report
    assert len(report.comparisons) == 3
    assert report.parting is None


def test_a_wrong_rule_parts_both_gradients_from_the_differences():
    f = lambda x: deep(wrong(x, W))  # noqa: E731
    report = check.walk(f)(X)
    assert not report.ok
    assert report.parting.operation == "custom_vjp_call"
    assert report.parting.wrong == ("jax.grad", "jaxbackprop.grad")
    assert "they part at custom_vjp_call (test_check_rules.py:" in str(report)


def test_the_walk_takes_numpys_float64_in_jaxs_precision():
    report = check.walk(lambda x, y: jnp.sum(x**3 * y), argnums=(0, 1))(np.ones(3), np.ones(3))
    assert report.ok
    assert not report.refused


def test_a_wrong_local_gradient_of_our_walk_is_named(monkeypatch):
    own = RULES["tanh"]
    doubled = lambda cts, outs, x, **params: own([2 * ct for ct in cts], outs, x, **params)  # noqa: E731
    monkeypatch.setitem(RULES, "tanh", doubled)
    report = check.walk(deep)(X)
    assert not report.ok
    assert (report.parting.operation, report.parting.steps) == ("tanh", (2,))
    assert report.parting.wrong == ("jaxbackprop.grad",)


def test_a_bias_before_a_normalisation_parts_nothing():
    x = jax.random.normal(jax.random.key(0), (8, 3))

    def f(p):
        y = jnp.sin(x) * p["scale"] + p["bias"]
        return jnp.mean(jnp.sin((y - y.mean(0)) / jnp.sqrt(y.var(0) + 1) + p["shift"]))

    assert check.walk(f)({name: jnp.ones(3) for name in ("scale", "bias", "shift")}).ok


def test_what_our_walk_refuses_is_told():
    f = lambda x: lax.while_loop(lambda c: jnp.sum(c) < 2, lambda c: c + 1, x).sum()  # noqa: E731
    with pytest.raises(ValueError, match="Reverse-mode"):
        check.walk(f)(X)
