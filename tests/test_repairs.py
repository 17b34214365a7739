"""Repairs: each is finite where its operation is not, and changes nothing where it was finite."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import inspect
from jaxbackprop.graph.inspection import repairs
from jaxbackprop.graph.inspection.repairs import REMEDIES, Remedy, helps, repair

INF, EDGE = jnp.inf, 1 - 2.0**-24  # the float32 before 1
PLAIN = [0.3, 1.0, 7.0]
CASES = {  # by repair: what it is instead of, at points of two kinds: singular, and sound
    "sqrt": (jnp.sqrt, [[0.0], [-2.0]], [PLAIN]),
    "norm": (lambda x: jnp.linalg.norm(x), [[0.0, 0.0]], [[0.0, 2.0], [1.0, -3.0]]),
    "std": (jnp.std, [[0.0, 0.0], [1.0, 1.0]], [[0.0, 2.0]]),
    "cbrt": (jnp.cbrt, [[0.0]], [[*PLAIN, -8.0]]),
    "rsqrt": (jax.lax.rsqrt, [[0.0], [-1.0]], [PLAIN]),
    "log": (jnp.log, [[0.0], [-1.0]], [PLAIN]),
    "log2": (jnp.log2, [[0.0], [-1.0]], [PLAIN]),
    "log10": (jnp.log10, [[0.0], [-1.0]], [PLAIN]),
    "log_of_softmax": (lambda x: jnp.log(jax.nn.softmax(x)), [[0.0, -200.0]], [PLAIN]),
    "log_of_sigmoid": (lambda x: jnp.log(jax.nn.sigmoid(x)), [[-200.0]], [[*PLAIN, -5.0]]),
    "log1p": (jnp.log1p, [[-1.0], [-2.0]], [[*PLAIN, -0.5]]),
    "divide": (jnp.divide, [[0.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, -2.0]]),
    "power": (jnp.power, [[0.0, 0.5], [0.0, -1.0]], [[2.0, 0.5], [-2.0, 3.0], [3.0, -1.0]]),
    "root": (jnp.power, [[0.0, 0.5], [-1.0, 0.5]], [[2.0, 0.5], [3.0, -1.0]]),
    "reciprocal": (jnp.reciprocal, [[0.0]], [[*PLAIN, -2.0]]),
    "arccos": (jnp.arccos, [[1.0], [-1.0], [1.0000001], [-3.0]], [[0.0, -0.9, EDGE]]),
    "arcsin": (jnp.arcsin, [[1.0], [-1.0], [1.0000001], [-3.0]], [[0.0, -0.9, EDGE]]),
    "arccosh": (jnp.arccosh, [[1.0], [0.5]], [[1.0000001, 9.0]]),
    "arctanh": (jnp.arctanh, [[1.0], [-1.0], [2.0]], [[0.0, -0.9, EDGE]]),
    "erf_inv": (jax.lax.erf_inv, [[1.0], [-1.0], [2.0]], [[0.0, -0.9, 0.99]]),
    "arctan2": (jnp.arctan2, [[0.0, 0.0], [0.0, -0.0]], [[0.0, -1.0], [2.0, 0.0], [-1.0, 3.0]]),
    "exp": (jnp.exp, [[89.0], [INF]], [[88.7, -200.0, *PLAIN]]),
    "expm1": (jnp.expm1, [[89.0], [INF]], [[88.7, -200.0, *PLAIN]]),
    "softmax": (jax.nn.softmax, [[-INF, -INF]], [[-INF, 1.0, 2.0], [3.0, 1.0]]),
    "log_softmax": (jax.nn.log_softmax, [[-INF, -INF]], [[3.0, 1.0]]),
    "logsumexp": (jax.nn.logsumexp, [[-INF, -INF]], [[-INF, 1.0], [3.0, 1.0]]),
}
PAIRS = {"divide", "power", "root", "arctan2"}


def value_and_slopes(name, f, point):
    """Of two operands apart, else of all entries of one; the gradient is that of Σ wᵢ fᵢ."""
    x = jnp.asarray(point, jnp.float32)
    run = (lambda x: f(x[0], x[1])) if name in PAIRS else f
    weights = jnp.arange(1.0, 1 + jnp.size(run(x))).reshape(jnp.shape(run(x)))
    return np.asarray(run(x)), np.asarray(jax.grad(lambda x: jnp.sum(weights * run(x)))(x))


def test_every_repair_of_the_table_has_a_case():
    assert {each.after.__name__ for each in REMEDIES} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_repair_is_finite_where_the_operation_is_singular(name):
    f, singular, _ = CASES[name]
    for point in singular:
        before = value_and_slopes(name, f, point)
        after = value_and_slopes(name, getattr(repairs, name), point)
        if name not in ("log_softmax", "logsumexp"):  # of which jax mends the slopes by itself
            assert not all(np.isfinite(part).all() for part in before)
        assert all(np.isfinite(part).all() for part in after), (point, after)
        if np.isfinite(before[0]).all():
            np.testing.assert_array_equal(after[0], before[0])


@pytest.mark.parametrize("name", CASES)
def test_a_repair_changes_nothing_where_value_and_slope_are_finite(name):
    f, _, sound = CASES[name]
    for point in sound:
        before = value_and_slopes(name, f, point)
        after = value_and_slopes(name, getattr(repairs, name), point)
        for a, b in zip(after, before, strict=True):
            rounded = 1e-4 if "log_of" in name else 2e-6  # log σ(z) rounds σ(z) near 1
            np.testing.assert_allclose(a, b, rtol=rounded, atol=1e-30)


@pytest.mark.parametrize("name", sorted(set(CASES) - PAIRS))
def test_a_nan_that_was_given_stays_one(name):
    found = getattr(repairs, name)(jnp.array([jnp.nan, 0.5]))
    assert np.isnan(found).any()


WRONG = {  # each looks like a repair
    "one where": (jnp.sqrt, lambda x: jnp.where(x > 0, jnp.sqrt(x), 0), [0.0]),
    "a small number added": (jnp.sqrt, lambda x: jnp.sqrt(x + 1e-6), [0.0, 1e-6]),
    "clipped before the edge": (jnp.arccos, lambda x: jnp.arccos(jnp.clip(x, -0.99, 0.99)), [1, 0]),
    "another function": (jnp.log, lambda x: jnp.log1p(x), [0.0, 2.0]),
    "nothing": (jnp.sqrt, jnp.sqrt, [0.0]),
    "flat everywhere": (jnp.sqrt, lambda x: jax.lax.stop_gradient(jnp.sqrt(x)), [0.0, 2.0]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_repair_is_found_by_running_it(name):
    before, after, x = WRONG[name]
    assert not helps(Remedy("", (), before, after, None, ""), [jnp.asarray(x, float)], {}, [True])


def test_a_repair_is_not_given_where_there_is_nothing_to_repair():
    assert repair("sqrt", [jnp.array([1.0, 2.0])]) is None
    assert repair("sin", [jnp.array([jnp.inf])]) is None


def test_only_the_slopes_of_operands_that_move_count():
    operands = [jnp.array([-2.0, 0.0]), jnp.array(-1.0)]  # (-2)ʸ has no slope by y
    assert repair("pow", operands) is None
    found = repair("pow", operands, moving=[True, False])
    assert found.text == "jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** y)"


# --- in the user's own line ---

TRAPS = {
    "masked root": "return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))",
    "root of a sum": "return jnp.sqrt(jnp.sum((x - x) ** 2)) + x[0]",
    "norm": "return jnp.linalg.norm(x[1:2], axis=0).sum() + jnp.sqrt(x[0])",
    "method": "y = x * 0\n    return y.std() + x[0]",
    "method with an axis": "y = x[:, None] * 0\n    return y.std(0).sum() + x[0]",
    "an axis by its place": "k = 1\n    return jnp.std(x[:, None] * 0, k, keepdims=True).sum()",
    "entropy": "return -jnp.sum(x * jnp.log(x))",
    "log of softmax": "p = jax.nn.softmax(300 * x, axis=-1)\n    return -jnp.log(p)[1]",
    "log of softmax at once": "return -jnp.log(jax.nn.softmax(300 * x))[1]",
    "log of sigmoid": "return jnp.sum(jnp.log(jax.nn.sigmoid(-200 * x)))",
    "division": "return jnp.sum(1 / x)",
    "power": "return jnp.sum(2 * x ** 0.5 + 1)",
    "inverse": "return jnp.sum(x**-2)",
    "two lines": "return jnp.sum(jnp.arccos(\n        x\n    ) * 2.0)",
    "angle": "return jnp.arctan2(x[1], x[1]) * 2",
    "overflow": "return jnp.sum(jnp.log(1 + jnp.exp(100 * x)))",
    "lambda": "return (lambda y: jnp.sum(jnp.sqrt(y * y) / 2))(x)",
    "softmax": (
        "z = jnp.where(jnp.array([[True, False], [False, False]]), x[:2], -jnp.inf)\n"
        "    return jnp.sum(jax.nn.softmax(z, axis=1) * 3)"
    ),
    "a comprehension": "return sum([jnp.sqrt(jnp.sum(y * y)) for y in x])",
    "two statements": "q = x * x; return jnp.sum((q * q) ** 0.5)",
    "amid a statement": "return jnp.sum(\n        jnp.sqrt(x * x)\n    )",
    "a function on one line": ("def g(y): return jnp.sum(jnp.sqrt(y * y))\n    return g(x)"),
    "a jitted scan": (
        "step = lambda c, a: (c + a, jnp.sqrt(a * c))\n"
        "    return jax.jit(lambda x: jax.lax.scan(step, 0.0, x)[1].sum())(x)"
    ),
}
HEADER = "import jax\nimport jax.numpy as jnp\n\n\ndef f(x):\n    "
NUMBER = itertools.count()


def module(tmp_path, text: str):
    path = tmp_path / f"model_{next(NUMBER)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", TRAPS)
def test_the_line_that_is_printed_runs_and_is_finite(name, tmp_path):
    source = HEADER + TRAPS[name] + "\n"
    x, sound = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.25])
    before = module(tmp_path, source).f
    origin = inspect(before)(x).origin()
    assert origin.repair.own
    lines = source.splitlines()
    first = origin.line.number - 1
    last = first + TRAPS[name].count("\n") * (name == "two lines")
    lines[first : last + 1] = ["    " + line for line in origin.repair.text.splitlines()]
    after = module(tmp_path, "\n".join(lines) + "\n").f
    found = jax.value_and_grad(after)(x)
    assert all(np.isfinite(part).all() for part in found), "\n".join(lines)
    expected = jax.value_and_grad(before)(sound)
    for a, b in zip(jax.value_and_grad(after)(sound), expected, strict=True):
        kept = np.where(np.isfinite(b), b, a)
        np.testing.assert_allclose(a, kept, rtol=1e-5)
    printed = str(origin)
    assert "write instead" in printed
    assert origin.repair.because in printed


def test_inside_a_library_the_repair_is_of_the_operation():
    def f(x):
        return jax.scipy.special.entr(x).sum()

    origin = inspect(f)(jnp.array([1.0, 0.0])).origin()
    assert not origin.repair.own
    assert origin.repair.text == "jnp.log(jnp.where(x <= 0, jnp.finfo(x.dtype).tiny, x))"
    assert "instead of log" in str(origin)


def test_the_numbers_are_printed_in_full():
    printed = str(inspect(lambda x: jnp.sum(jnp.arccos(x)))(jnp.array([1.0000001])).origin())
    assert "operand         1.0000001" in printed
    f = lambda x: jnp.linalg.cholesky(x)[0, 0]  # noqa: E731
    printed = str(inspect(f)(jnp.array([[-0.1, 0.0], [0.0, 1.0]])).origin())
    assert "[[-0.1" in printed
