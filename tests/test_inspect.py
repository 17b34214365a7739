"""Looking into a graph: what is shown is what was computed, and a NaN is traced to its line."""

import inspect as source
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import inspect
from jaxbackprop.graph.rules import RULES

HERE = "test_inspect.py"


def line_of(f, text: str) -> int:
    """The number of the line of f that has this text."""
    lines, first = source.getsourcelines(f)
    (found,) = [first + i for i, line in enumerate(lines) if text in line]
    return found


def records(inspection, operation: str) -> list:
    return [record for record in inspection if record.operation == operation]


# --- values, gradients, paths ---


def chapter(x, y):
    total = x + y
    return total * y


def test_the_texts_example_has_its_values_and_its_two_paths():
    found = inspect(chapter, argnums=(0, 1))(2.0, 3.0)
    x, y, total, product = found
    assert [float(r.value) for r in found] == [2, 3, 5, 15]
    assert [float(r.gradient) for r in found] == [3, 8, 3, 1]
    assert [(p.operation, p.through, float(p.gradient)) for p in y.paths] == [
        ("add", total.number, 3.0),
        ("mul", product.number, 5.0),
    ]
    assert [float(g) for g in product.local_gradients] == [3, 5]
    assert total.line.number == line_of(chapter, "x + y")
    assert product.line.number == line_of(chapter, "total * y")
    assert found.value == 15
    assert found.gradients == (3, 8)
    assert found.origin() is None
    assert x.line is None


def test_using_a_value_twice_in_one_operation_gives_two_paths():
    def double(a):
        b = a + a
        return b + b

    a, b, _ = inspect(double)(2.0)
    assert [float(p.gradient) for p in a.paths] == [2, 2]
    assert [float(p.gradient) for p in b.paths] == [1, 1]
    assert float(a.gradient) == 4


def mlp(params, x):
    for W, b in params[:-1]:
        x = jax.nn.relu(W @ x + b)
    W, b = params[-1]
    return jnp.mean((jnp.tanh(W @ x) + b) ** 2)


def parameters(sizes=(3, 5, 4, 2)):
    keys = iter(jax.random.split(jax.random.key(0), len(sizes)))
    return [(jax.random.normal(next(keys), (n, m)), jnp.ones((n, 1))) for m, n in pairwise(sizes)]


def recurrent(w, xs):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, jnp.sum(h**2)

    return jax.lax.scan(step, jnp.zeros(3), xs)[1].sum()


def nested(w):
    return jax.lax.scan(lambda c, xs: (c + recurrent(w, xs), c), 0.0, jnp.stack([XS, -XS]))[0]


def branching(x):
    return jax.lax.cond(x[0] > 0, lambda x: jnp.sin(x).sum(), lambda x: jnp.cos(x).sum(), x)


def rematerialised(x):
    return jax.checkpoint(lambda x: jnp.sin(jnp.exp(x)))(x).sum()


@jax.custom_vjp
def doubled(x):
    return x * x


doubled.defvjp(lambda x: (x * x, x), lambda x, ct: (3 * ct * x,))

W, XS = 0.3 * jax.random.normal(jax.random.key(1), (3, 3)), jnp.arange(12.0).reshape(4, 3) / 9
FUNCTIONS = {
    "mlp": (mlp, parameters(), jnp.ones((3, 7))),
    "jit": (jax.jit(mlp), parameters(), jnp.ones((3, 7))),
    "scan": (recurrent, W, XS),
    "jitted scan": (jax.jit(recurrent), W, XS),
    "nested scan": (
        lambda w: jax.lax.scan(lambda c, x: (c + recurrent(w, x), c), 0.0, XS[None])[0],
        W,
    ),
    "reverse scan": (
        lambda x: jax.lax.scan(lambda c, a: (jnp.sin(c) * a, c * a), 1.0, x, reverse=True)[1][0],
        jnp.ones(4),
    ),
    "cond": (branching, jnp.ones(3)),
    "other branch": (branching, -jnp.ones(3)),
    "remat": (rematerialised, jnp.ones(3)),
    "custom_jvp": (lambda x: jax.nn.relu(x).sum(), jnp.array([-1.0, 0.0, 2.0])),
    "custom_vjp": (lambda x: doubled(x).sum(), jnp.ones(3)),
    "constant": (lambda x: jnp.sum(jnp.ones(3)), jnp.ones(3)),
    "itself": (lambda x: x, 2.0),
    "bfloat16": (lambda x: jnp.sum(x * x), jnp.ones(3, jnp.bfloat16)),
    "random": (lambda x: (x * jax.random.normal(jax.random.key(0), (3,))).sum(), jnp.ones(3)),
    "empty scan": (lambda x: jax.lax.scan(lambda c, a: (c * a, a), x, jnp.ones(0))[0], 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_sees_the_gradient_that_jax_computes(name):
    f, *args = FUNCTIONS[name]
    found = inspect(f)(*args)
    value, gradients = jax.value_and_grad(f)(*args)
    np.testing.assert_allclose(found.value, value, rtol=1e-5)
    assert jax.tree.structure(found.gradients) == jax.tree.structure(gradients)
    for g, expected in zip(*map(jax.tree.leaves, (found.gradients, gradients)), strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_of_every_value_is_the_sum_over_its_paths(name):
    f, *args = FUNCTIONS[name]
    for record in inspect(f)(*args):
        if record.paths:
            total = sum(path.gradient.astype(float) for path in record.paths)
            np.testing.assert_allclose(total, record.gradient.astype(float), rtol=1e-5, atol=1e-6)


def test_a_wrong_rule_in_the_table_shows(monkeypatch):
    monkeypatch.setitem(RULES, "sin", lambda cts, outs, x, **_: (lambda: cts[0] * jnp.sin(x),))
    _, sin, _ = found = inspect(lambda x: jnp.sum(jnp.sin(x)))(jnp.ones(2))
    np.testing.assert_array_equal(found.gradients, jnp.sin(jnp.ones(2)))
    np.testing.assert_array_equal(sin.gradient, jnp.ones(2))


def test_the_gradient_of_an_intermediate_is_the_slope_of_adding_to_it():
    def f(x, nudge):
        return jnp.sum(jnp.sin(x * x + nudge) * x)

    x = jnp.array([0.3, 0.7])
    (add,) = records(inspect(f)(x, jnp.zeros(2)), "add")
    np.testing.assert_allclose(add.gradient, jax.grad(f, 1)(x, jnp.zeros(2)), rtol=1e-6)


def test_local_gradients_are_the_derivatives_entry_by_entry():
    x = jnp.array([0.3, 0.7])
    found = inspect(lambda x: jnp.sum(jnp.sin(x)))(x)
    _, sin, total = found
    np.testing.assert_allclose(sin.local_gradients[0], jnp.cos(x), rtol=1e-6)
    np.testing.assert_allclose(total.local_gradients[0], jnp.ones(2))
    (product,) = records(inspect(lambda w: (w @ w).sum())(W), "dot_general")
    assert product.local_gradients == (None, None)


def test_statistics_count_zeros_and_what_is_not_finite():
    x = jnp.array([0.0, -3.0, jnp.inf, 4.0, jnp.nan])
    found = inspect(lambda x: jnp.sum(x))(x)[0].value_statistics
    assert (found.size, found.zeros, found.nonfinite) == (5, 0.2, 2)
    found = inspect(lambda x: jnp.sum(x))(jnp.array([0.0, -3, 4, 3]))[0].value_statistics
    assert (found.norm, found.mean, found.min, found.max) == (34**0.5, 1, -3, 4)


def test_a_scan_is_shown_step_by_step():
    found = inspect(recurrent)(W, XS)
    (tanh,) = records(found, "tanh")
    assert tanh.steps == len(XS)
    assert tanh.value.shape == tanh.gradient.shape == (4, 3)
    h = np.zeros(3)
    for (value, _), x, each in zip(tanh.by_step(), XS, tanh.value, strict=True):
        h = np.tanh(np.asarray(W) @ h + x)
        np.testing.assert_allclose(each, h, rtol=1e-5)
        assert value.norm == pytest.approx(np.linalg.norm(h), rel=1e-5)
    np.testing.assert_allclose(tanh.gradient[-1], 2 * tanh.value[-1], rtol=1e-5)
    assert "in each step" in str(tanh)


def test_a_value_constant_in_the_first_step_has_its_gradient_there_too():
    def f(w):
        return jax.lax.scan(lambda h, _: (h * w, h.sum()), jnp.ones(2), None, 3)[1].sum()

    (total,) = records(inspect(f)(2.0), "reduce_sum")[:1]
    np.testing.assert_array_equal(total.gradient, [1, 1, 1])


def test_the_inside_of_a_rule_of_its_own_is_shown_and_never_walked():
    found = inspect(lambda x: jax.nn.relu(x).sum())(jnp.array([-1.0, 0.0, 2.0]))
    (inside,), (relu,) = records(found, "max"), records(found, "relu")
    assert inside.gradient is None
    np.testing.assert_array_equal(inside.value, relu.value)
    np.testing.assert_array_equal(found.gradients, [0, 0, 1])  # the body has ½ at 0


# --- what it prints ---


def test_the_table_fits_a_terminal_and_has_a_row_for_every_value():
    text = str(inspect(jax.jit(mlp))(parameters(), jnp.ones((3, 7))))
    assert max(map(len, text.splitlines())) <= 100
    for expected in ("params[0][0]", "dot_general", "relu", HERE, "f32[5,7]"):
        assert expected in text
    text = str(inspect(recurrent)(W, XS))
    assert max(map(len, text.splitlines())) <= 100
    for expected in ("f32[3] ×4", "by dot_general #", "by integer_pow #"):
        assert expected in text


def test_a_long_table_is_cut_and_says_how_to_see_the_rest():
    def f(x):
        for _ in range(200):
            x = jnp.sin(x)
        return x

    text = str(inspect(f)(1.0))
    assert "141 more" in text
    assert ".largest(n)" in text


def test_the_notebook_shows_the_same_rows_and_escapes_names():
    html = inspect(lambda p: p["<b>"] * 2.0)({"<b>": 1.0})._repr_html_()
    assert html.count("<tr") == 3
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_a_record_prints_its_stack():
    def inner(x):
        return jnp.sin(x)

    def outer(x):
        return inner(x) * 2

    (sin,) = records(inspect(outer)(1.0), "sin")
    assert [line.function.split(".")[-1] for line in sin.stack if line.is_users] == [
        "inner",
        "outer",
    ]
    assert "return jnp.sin(x)" in str(sin)
    assert repr(sin) == str(sin)


def test_a_jitted_library_function_has_the_line_of_each_of_its_callers():
    def f(x):
        a = jnp.linalg.norm(x)
        b = jnp.linalg.norm(x)
        return a + b

    first, second = records(inspect(f)(jnp.ones(3)), "sqrt")
    assert (first.line.number, second.line.number) == (line_of(f, "a = "), line_of(f, "b = "))


def test_filters():
    found = inspect(mlp)(parameters(), jnp.ones((3, 7)))
    number = line_of(mlp, "jnp.mean")
    assert {r.line.number for r in found.lines(f"{HERE}:{number}")} == {number}
    with pytest.raises(ValueError, match=f"no line matches 'tset_inspect.py:1'.*{HERE}:"):
        found.lines("tset_inspect.py:1")
    norms = [r.gradient_statistics.norm for r in found.largest(3)]
    assert norms == sorted(norms, reverse=True)
    everything = [r.gradient_statistics.norm for r in found if r.gradient is not None]
    assert norms[0] == max(everything)
    assert found[2] is found.largest(1)[2]


def test_vanishing_finds_the_layers_that_saturate():
    def f(x):
        for _ in range(3):
            x = jax.nn.sigmoid(20 * x + 20)
        return x

    found = inspect(f)(0.5)
    assert 0 in [r.number for r in found.vanishing()]
    assert all(abs(r.gradient) <= 1e-6 for r in found.vanishing())
    assert len(found.vanishing(0.0)) <= len(found.vanishing()) < len(found)


# --- bad input ---


def test_bad_input_is_refused_in_the_terms_of_grad():
    with pytest.raises(TypeError, match="real inputs"):
        inspect(lambda x: x * 2.0)(3)
    with pytest.raises(TypeError, match="scalar-output"):
        inspect(lambda x: x)(jnp.ones(3))
    with pytest.raises(TypeError, match="outside"):
        jax.jit(lambda x: inspect(jnp.sin)(x).value)(1.0)


# --- the origin of NaN and Inf ---


def masked_root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()


def length(x):
    return jnp.linalg.norm(x)


def log_of_softmax(x):
    p = jax.nn.softmax(x)
    return -jnp.log(p)[1]


def power_of_nothing(x):
    return jnp.sum(x * x**-1.0)


def deviation(x):
    return jnp.std(x)


def hidden_by_relu(x):
    y = jnp.log(x)
    return jax.nn.relu(y).sum()


def overflow(x):
    y = jnp.exp(x)
    return jnp.sum(y / (1 + y))


def cosine(x):
    n = jnp.sqrt(jnp.sum(x * x))
    return jnp.sum(x / n)


def in_a_scan(x):
    def step(c, a):
        return c + jnp.sqrt(a), c

    return jax.lax.scan(step, 0.0, x)[0]


def in_remat(x):
    return jax.checkpoint(lambda x: jnp.sqrt(jnp.sin(x)))(x).sum()


def in_a_branch(x):
    return jax.lax.cond(True, lambda x: jnp.sqrt(x).sum(), lambda x: x.sum(), x)


def all_masked(x):
    y = jnp.where(jnp.zeros(3, bool), x, -jnp.inf)
    return jax.nn.softmax(y)[0]


ZEROS, SIGNS = np.zeros(3, "f4"), np.array([1.0, -1.0, 2.0], "f4")
TRAPS = {  # function, x, and of the origin: direction, operation, text of its line
    "where at 0": (masked_root, [1.0, 0.0, 2.0], "backward", "sqrt", "jnp.where"),
    "where below 0": (masked_root, SIGNS, "forward", "sqrt", "jnp.where"),
    "norm": (length, ZEROS, "backward", "sqrt", "norm"),
    "log(softmax)": (log_of_softmax, [200.0, 0.0, -200.0], "forward", "log", "jnp.log"),
    "power": (power_of_nothing, ZEROS, "forward", "pow", "**"),
    "std": (deviation, np.ones(3, "f4"), "backward", "sqrt", "std"),
    "relu'(NaN)": (hidden_by_relu, SIGNS, "forward", "log", "jnp.log"),
    "exp": (overflow, [1.0, 200.0], "forward", "exp", "jnp.exp"),
    "cosine": (cosine, ZEROS, "forward", "div", "x / n"),
    "scan": (in_a_scan, [1.0, 2.0, 0.0, 1.0], "backward", "sqrt", "jnp.sqrt"),
    "remat": (in_remat, ZEROS, "backward", "sqrt", "jnp.sqrt"),
    "cond": (in_a_branch, ZEROS, "backward", "sqrt", "jnp.sqrt"),
    "all masked": (all_masked, SIGNS, "forward", "sub", "nn.softmax"),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_the_origin_is_the_operation_and_line_of_the_trap(name, jit):
    f, x, *expected, text = TRAPS[name]
    found = inspect(jax.jit(f) if jit else f)(jnp.asarray(x))
    np.testing.assert_array_equal(np.isnan(found.gradients), np.isnan(jax.grad(f)(jnp.asarray(x))))
    origin = found.origin()
    assert [origin.direction, origin.operation] == expected
    assert origin.line.file == __file__
    assert origin.line.number == line_of(f, text)
    assert origin.reaches
    assert f"{HERE}:{origin.line.number}" in str(origin)
    assert f"origin of NaN, Inf: {origin.operation}" in str(found)


def test_the_origin_shows_zero_times_infinity():
    origin = inspect(masked_root)(jnp.array([1.0, 0.0, 2.0])).origin()
    assert origin.entry == (1,)
    assert [float(x) for x in origin.operands] == [0.0]
    assert (origin.gradient, origin.local_gradient) == (0, np.inf)
    assert np.isnan(origin.result)
    assert origin.reaches == ("the gradient of x",)


def test_the_origin_is_found_while_jaxs_own_alarms_are_on():
    x = jnp.array([1.0, 0.0, 2.0])
    with jax.debug_nans(True), jax.debug_infs(True):
        found = inspect(masked_root)(x)
        assert found.origin().operation == "sqrt"
        assert np.isinf(found[2].local_gradients[0][1])


def test_the_origin_names_the_step_of_the_scan():
    origin = inspect(in_a_scan)(jnp.array([1.0, 2.0, 0.0, 1.0])).origin()
    assert origin.scan_steps == (2,)
    assert "step            2 of the loop" in str(origin)


def test_the_power_zero_at_zero_is_what_jax_says_it_is():
    x = jnp.zeros(3)
    found = inspect(lambda x: jnp.sum(x**0.0))(x)
    expected = jax.grad(lambda x: jnp.sum(x**0.0))(x)
    np.testing.assert_array_equal(found.gradients, expected)
    if np.isnan(expected).any():
        assert found.origin().operation == "pow"
        assert found.origin().direction == "backward"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_all_is_finite_there_is_no_origin(name):
    f, *args = FUNCTIONS[name]
    assert inspect(f)(*args).origin() is None


def test_a_mask_of_infinities_that_does_no_harm_is_no_origin():
    def f(x):
        return jax.nn.softmax(jnp.where(jnp.array([True, False, True]), x, -jnp.inf))[0]

    assert inspect(f)(jnp.ones(3)).origin() is None


def test_a_harmless_infinity_elsewhere_is_not_blamed():
    def f(x):
        harmless = jnp.where(x > 1, 0.0, jnp.exp(-jnp.log(jnp.abs(x))))  # 1 / 0 on the way
        guilty = jnp.sqrt(x - 2)
        return jnp.sum(harmless + guilty)

    origin = inspect(f)(jnp.array([2.0, 3.0, 0.5])).origin()
    assert (origin.operation, origin.line.number) == ("sqrt", line_of(f, "jnp.sqrt"))
    assert origin.entry == (2,)


def test_where_results_and_gradients_are_finite_nothing_is_reported():
    def overflows_on_the_way(x):
        return jnp.sum(1 / jnp.exp(jax.lax.stop_gradient(x)) + x)

    assert inspect(overflows_on_the_way)(jnp.array([100.0])).origin() is None
    assert inspect(jnp.median)(jnp.array([1.0, 2, 3, 4])).origin() is None


def test_a_nan_that_was_given_is_its_own_origin():
    bad = jnp.array([1.0, jnp.nan])
    origin = inspect(lambda x: jnp.sum(jnp.sin(x)))(bad).origin()
    assert (origin.direction, origin.operation, origin.entry) == ("given", "x", (1,))
    origin = inspect(lambda x, data: jnp.sum(x * data))(jnp.ones(2), bad).origin()
    assert (origin.direction, origin.operation, origin.entry) == ("given", "data", (1,))
    assert "data is given as nan" in str(origin)


def test_a_rule_of_its_own_that_makes_nan_is_named():
    @jax.custom_vjp
    def f(x):
        return x * 1.0

    def back(x, ct):
        return (ct * x / x,)

    f.defvjp(lambda x: (x, x), back)
    origin = inspect(lambda x: jnp.sum(f(x)))(jnp.zeros(2)).origin()
    assert (origin.direction, origin.operation) == ("backward", "div")
    assert origin.line.number == line_of(back, "ct * x / x")


# --- models that nobody here wrote ---


def test_a_flax_model_is_looked_into():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(4)(x)
            x = linen.LayerNorm(epsilon=0.0)(x)
            return linen.relu(x)

    model = Model()
    x = jnp.arange(6.0).reshape(2, 3)
    params = model.init(jax.random.key(0), x)

    @jax.jit
    def loss(params, x):
        return model.apply(params, x).sum()

    found = inspect(loss)(params, x)
    assert ".params.Dense_0.kernel" in str(found)
    dense = line_of(Model.__call__, "Dense")
    assert records(found, "dot_general")[0].line.number == dense
    for g, expected in zip(
        *map(jax.tree.leaves, (found.gradients, jax.grad(loss)(params, x))), strict=True
    ):
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)
    assert found.origin() is None
    origin = inspect(loss)(params, jnp.zeros((2, 3))).origin()  # the variance is 0
    assert origin.line.number == line_of(Model.__call__, "LayerNorm")


def test_an_equinox_model_is_looked_into():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, "scalar", 4, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)

    def loss(arrays, x):
        return eqx.combine(arrays, static)(x) ** 2

    found = inspect(loss)(arrays, jnp.ones(3))
    assert "arrays.layers[0].weight" in str(found)
    assert len(records(found, "relu")) == 2
    for g, expected in zip(
        *map(jax.tree.leaves, (found.gradients, jax.grad(loss)(arrays, jnp.ones(3)))), strict=True
    ):
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-6)


SCRIPT = Path(__file__).parent.parent / "scripts" / "where_is_my_nan.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        patch.setattr(sys, "excepthook", sys.excepthook)
        return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_gallery_shows_each_origin(script, capsys):
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    assert script.main(script.Options()) is False
    printed = capsys.readouterr().out
    lines = SCRIPT.read_text().splitlines()
    for text, direction in (
        ("sum(jnp.where(x > 0, jnp.sqrt", "sqrt at {} makes the gradient nan"),
        ("jnp.linalg.norm(state)", "sqrt at {} makes the gradient inf"),
        ("-jnp.log(probabilities)", "log at {} makes the value -inf"),
        ("w / jnp.sqrt(", "div at {} makes the value nan"),
        ("jnp.linalg.eigh(", "eigh at {} makes the gradient nan"),
        ("linen.LayerNorm(epsilon", "rsqrt at {} makes the value inf"),
        ("jax.nn.softmax(scores)", "sub at {} makes the value nan"),
    ):
        (number,) = [i for i, line in enumerate(lines, 1) if text in line]
        assert direction.format(f"where_is_my_nan.py:{number}") in printed
    for text in ("step            0 of the loop", "step            1 of the loop"):
        assert text in printed
    assert "named           Model/LayerNorm_0" in printed
    assert printed.count("all is finite") == 1
    assert printed.count("write instead") == 6  # of equal eigenvalues nothing is known


def test_the_script_looks_into_a_users_function(script, tmp_path, capsys, monkeypatch):
    model = tmp_path / "model.py"
    text = "import jax.numpy as jnp\ndef init(n):\n    return jnp.zeros(n)\n"
    model.write_text(text + "def loss(w, k):\n    return k * jnp.linalg.norm(w)\n")
    options = script.Options(f"{model}:loss", ("init(2)", "3"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert script.main(options) is True
    assert "sqrt at model.py:5 makes the gradient inf" in capsys.readouterr().out
    assert script.main(script.Options(f"{model}:loss", ("jnp.ones(2)", "3"))) is False
    for target, arguments, message in (
        (f"{model}:los", (), "the nearest are loss"),
        (f"{tmp_path}/other.py:loss", (), "no file"),
        (f"{model}:loss", ("innit(2)", "3"), "'innit.2.': NameError"),
    ):
        with pytest.raises(ValueError, match=message):
            script.main(script.Options(target, arguments))
    with pytest.raises(ValueError, match=r"file\.py:function"):
        script.Options("model.py")
    with pytest.raises(ValueError, match="one of where, "):
        script.Options(only=("wher",))


def test_a_nan_made_inside_a_function_with_a_rule_of_its_own_is_told_from_inside():
    @jax.custom_vjp
    def f(x):
        y = jnp.log(x)
        return y * 2.0, x

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (2 * ct[0] / x + ct[1],))
    origin = inspect(lambda x: jnp.sum(f(x)[0]))(jnp.array([1.0, -1.0])).origin()
    assert (origin.direction, origin.operation) == ("forward", "log")
    assert origin.line.number == line_of(f.__wrapped__, "jnp.log")


def test_what_a_where_does_not_choose_is_not_blamed():
    def f(x):
        y = jnp.log(x)
        return jnp.sum(jnp.where(x < 5, y, jnp.nan))  # as jnp.var has it

    origin = inspect(f)(jnp.array([1.0, -1.0])).origin()
    assert (origin.direction, origin.operation) == ("forward", "log")
    assert inspect(f)(jnp.array([1.0, 7.0])).origin().direction == "given"
