"""Campaign on the public functions: arguments drawn by hypothesis, about half of them invalid.

A valid call passes the gates against an oracle. An invalid one ends in the exception named for it,
with a message, raised by the library and not by what it calls. Invalid means another shape, dtype,
range, name, structure or kind of value than a function's docstring and annotations ask for.
"""

import pathlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import beartype
import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import oracle
from campaign_report import Report, control, planted
from gates import absolute_pass, g1, g2, g3, g4
from hypothesis import strategies as st

import jaxbackprop
from jaxbackprop import Layer, Network, backprop, check, data, equations, train

ROOT = str(pathlib.Path(jaxbackprop.__file__).parent)
EQUATION = {name: getattr(equations, name) for name in oracle.EQUATIONS}
TYPED = {
    name: jaxtyping.jaxtyped(typechecker=beartype.beartype)(function)
    for name, function in EQUATION.items()
}


class Call(NamedTuple):
    """A call; `expected` the exceptions it must end in, or `right`, which judges its result."""

    name: str
    call: Callable[[], Any]
    right: Callable[[Any], bool] | None = None
    expected: tuple[type[Exception], ...] = ()


class Case(NamedTuple):
    """A network with everything that goes with it, all of it valid."""

    network: Network
    params: tuple
    x: jax.Array
    y: jax.Array


def normal(seed: int, shape: tuple, dtype: Any = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@st.composite
def cases(draw) -> Case:
    sizes = draw(st.lists(st.sampled_from([1, 3, 4]), min_size=2, max_size=4))
    hidden = draw(st.sampled_from(["sigmoid", "tanh", "relu", "identity", "gelu"]))
    output, loss = draw(
        st.sampled_from(
            [
                ("identity", "squared_error"),
                ("sigmoid", "squared_error"),
                ("sigmoid", "binary_cross_entropy"),
                ("softmax", "cross_entropy"),
            ]
        )
    )
    seed, m = draw(st.integers(0, 999)), draw(st.sampled_from([1, 5]))
    network = Network(sizes, hidden, output, loss)
    shapes = zip(network.sizes[1:], network.sizes, strict=False)
    params = tuple(
        Layer(normal(seed + k, shape), normal(seed + k + 9, (shape[0], 1)))
        for k, shape in enumerate(shapes)
    )
    classes = np.random.default_rng(seed).integers(sizes[-1], size=m)
    y = jnp.asarray(np.eye(sizes[-1], dtype="float32")[:, classes])
    return Case(network, params, normal(seed, (sizes[0], m)), y)


def spoiled_array(draw, array: jax.Array) -> Any:
    """An array of another shape, dtype or kind."""
    return draw(
        st.sampled_from(
            [
                jnp.zeros((array.shape[0] + 1, *array.shape[1:])),
                jnp.zeros(array.shape[:1]),
                jnp.zeros((*array.shape, 2)),
                array.astype("int32"),
                array.astype("float16"),
                array.astype("complex64"),
                array[:, :0],
                None,
                "x",
                np.asarray(array).tolist(),
            ]
        )
    )


def spoiled_params(draw, params: tuple) -> Any:
    k = draw(st.integers(0, len(params) - 1))
    layer = params[k]
    bad = [
        layer._replace(W=jnp.zeros((layer.W.shape[0] + 1, layer.W.shape[1]))),
        layer._replace(W=jnp.zeros((1, 1, *layer.W.shape)), b=jnp.zeros((1, 1, *layer.b.shape))),
        layer._replace(b=layer.b[:, 0]),
        layer._replace(b=layer.b.astype("float16")),
        layer._replace(W=layer.W[0]),
        layer._replace(W=None),
        tuple(layer),
        None,
    ]
    entry = draw(st.sampled_from(bad))
    whole = [
        (*params[:k], entry, *params[k + 1 :]),
        params[:-1],
        (*params, params[-1]),
        (),
        (*params[:-1], jax.tree.map(lambda a: a[None], params[-1])),
        jax.tree.map(lambda a: a.astype("int32"), params),
    ]
    return draw(st.sampled_from(whole + whole[:1] * 4))


def spoil(draw, case: Case, *fields: str) -> Case:
    field = draw(st.sampled_from(fields))
    value = getattr(case, field)
    new = spoiled_params(draw, value) if field == "params" else spoiled_array(draw, value)
    return case._replace(**{field: new})


BAD = (ValueError, TypeError)


def network_call(draw, valid: bool) -> Call:
    if valid:
        sizes = draw(st.lists(st.integers(1, 10**6), min_size=2, max_size=9))
        return Call("Network", lambda: Network(sizes), lambda n: n.sizes == tuple(sizes))
    wrong = draw(
        st.sampled_from(
            [
                {"sizes": draw(st.lists(st.integers(-3, 0), max_size=4))},
                {"sizes": draw(st.sampled_from([(3, 2.5), (3, True), "34", 5, None, (3, None)]))},
                {"hidden": draw(st.one_of(st.text(max_size=5), st.just("softmax"), st.integers()))},
                {"output": draw(st.sampled_from(["softmax", "relus", None, 3]))},
                {"loss": draw(st.sampled_from(["cross_entropy", "mse", None, ["squared_error"]]))},
                {"loss": "binary_cross_entropy", "output": "tanh"},
            ]
        )
    )
    return Call("Network", lambda: Network(**{"sizes": (3, 4, 2)} | wrong), None, BAD)


def init_call(draw, valid: bool) -> Call:
    case, seed = draw(cases()), draw(st.integers(0, 99))
    if valid:
        return Call(
            "init",
            lambda: jaxbackprop.init(case.network, jax.random.key(seed)),
            lambda p: [layer.W.shape for layer in p] == [layer.W.shape for layer in case.params],
        )
    wrong = draw(
        st.sampled_from(
            [
                {"key": None},
                {"key": 3},
                {"key": jnp.zeros(2)},
                {"key": jax.random.split(jax.random.key(0), 3)},
                {"dtype": "int32"},
                {"dtype": "complex64"},
                {"dtype": "float31"},
                {"scheme": "kaiming"},
                {"scheme": 3},
            ]
        )
    )
    arguments = {"key": jax.random.key(0)} | wrong
    return Call("init", lambda: jaxbackprop.init(case.network, **arguments), None, BAD)


def numpy_cost(case: Case) -> tuple:
    layers = [(layer.W, layer.b) for layer in case.params]
    return oracle.squared_error_backprop(
        layers, case.x, case.y, case.network.hidden, case.network.output
    )


def gradients_right(case: Case, gradients: Any) -> bool:
    """In jax.grad's form, and by one of the gates as near to jax.grad or as near to the truth.

    Near 0 by cancellation, or behind a saturated unit, two right gradients are not near each other.
    """
    reference = jax.grad(jaxbackprop.loss, argnums=1)(case.network, case.params, case.x, case.y)
    terms = case.x.shape[1] + sum(case.network.sizes)
    return g4(gradients, reference) and (
        g1(gradients, reference, case.network.depth)
        or g2(gradients, reference, absolute_pass(*case), terms)
        or g3(gradients, reference, truth(case))
    )


def truth(case: Case) -> Any:
    """In float64: by the NumPy transcription where it has these functions, else by jax.grad."""
    if case.network.hidden != "gelu" and case.network.loss == "squared_error":
        return tuple(Layer(*pair) for pair in numpy_cost(case)[1])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case[1:])
        wide = jax.tree.map(jnp.asarray, wide)
        return jax.grad(jaxbackprop.loss, argnums=1)(case.network, *wide)


def pass_call(draw, valid: bool) -> Call:
    """forward, loss, backprop and backward."""
    case = draw(cases())
    name = draw(st.sampled_from(["forward", "loss", "backprop", "backward"]))
    if not valid:
        fields = ("params", "x") if name == "forward" else ("params", "x", "y")
        fields = ("params", "y") if name == "backward" else fields
        sound, case = case, spoil(draw, case, *fields)
    if name == "forward":
        call, right = lambda: jaxbackprop.forward(*case[:3]), lambda t: forward_right(case, t)
    elif name == "loss":
        call, right = lambda: jaxbackprop.loss(*case), lambda c: cost_right(case, c)
    elif name == "backprop":
        call, right = lambda: backprop(*case), lambda r: gradients_right(case, r[1])
    else:
        trace = jaxbackprop.forward(*(case if valid else sound)[:3])
        if not valid and draw(st.booleans()):
            case, trace = sound, spoiled_trace(draw, trace)
        call = lambda: jaxbackprop.backward(case.network, case.params, trace, case.y)  # noqa: E731
        right = lambda r: gradients_right(case, r.gradients)  # noqa: E731
    return Call(name, call, right) if valid else Call(name, call, None, BAD)


def spoiled_trace(draw, trace: Any) -> Any:
    zs, activations = trace
    return draw(
        st.sampled_from(
            [
                trace._replace(zs=zs[1:]),
                trace._replace(activations=activations[1:]),
                trace._replace(activations=(jnp.zeros((7, 5)), *activations[1:])),
                trace._replace(zs=(*zs[:-1], jnp.zeros((7, 5)))),
            ]
        )
    )


def forward_right(case: Case, trace: Any) -> bool:
    a = np.asarray(case.x, np.float64)
    for (W, b), z in zip(case.params, trace.zs, strict=True):
        expected = np.asarray(W, np.float64) @ a + np.asarray(b, np.float64)
        if not np.allclose(z, expected, rtol=1e-4, atol=1e-5):
            return False
        if case.network.hidden == "gelu":
            return True  # the oracle has none: the first z is all it can say
        a = oracle.SIGMA[case.network.hidden][0](expected)
    return True


def cost_right(case: Case, cost: Any) -> bool:
    if case.network.hidden == "gelu" or case.network.loss != "squared_error":
        trace = jaxbackprop.forward(*case[:3])
        z, y = np.asarray(trace.zs[-1], np.float64), np.asarray(case.y, np.float64)
        if case.network.loss == "squared_error":
            return bool(np.isfinite(cost))
        one = np.logaddexp(0, z) - y * z
        many = y * (np.logaddexp.reduce(z, axis=0, keepdims=True) - z)
        each = one if case.network.loss == "binary_cross_entropy" else many
        return bool(np.isclose(cost, each.sum() / y.shape[1], rtol=1e-5, atol=1e-6))
    return bool(np.isclose(cost, numpy_cost(case)[0], rtol=1e-4, atol=1e-6))


def equation_call(draw, valid: bool) -> Call:
    """The equations are one expression each: their annotations check shapes, where asked to."""
    name, seed = draw(st.sampled_from(list(EQUATION))), draw(st.integers(0, 99))
    n, p, q, m = (draw(st.sampled_from([1, 3, 4])) for _ in range(4))
    shapes = {
        "output_error": [(n, m), (n, m)],
        "hidden_error": [(q, n), (q, m), (n, m)],
        "weight_gradient": [(n, m), (p, m)],
        "bias_gradient": [(n, m)],
    }[name]
    args = [normal(seed + k, shape) for k, shape in enumerate(shapes)]
    if valid:
        expected = oracle.EQUATIONS[name](*(np.asarray(a, np.float64) for a in args))
        return Call(
            name, lambda: EQUATION[name](*args), lambda r: np.allclose(r, expected, 1e-4, 1e-5)
        )
    wrong = [jnp.zeros((2, 7)), jnp.zeros(3), jnp.zeros((n, m), int)]
    if name == "bias_gradient":
        wrong = wrong[1:]
    args[draw(st.integers(0, len(args) - 1))] = draw(st.sampled_from(wrong))
    return Call(name, lambda: TYPED[name](*args), None, (jaxtyping.TypeCheckError,))


SMOOTH = {
    "sin": lambda x: jnp.sum(jnp.sin(x) * x),
    "exp": lambda x: jnp.mean(jnp.exp(-x * x)),
    "matmul": lambda x: jnp.sum(jnp.tanh(x @ x.T / 12)),
    "max": lambda x: jnp.max(x**2) + jnp.sum(jnp.where(x > 0, x, 0.1 * x)),
}


def graph_call(draw, valid: bool) -> Call:
    """grad, value_and_grad, vjp and inspect."""
    which = draw(st.sampled_from(["grad", "value_and_grad", "vjp", "inspect"]))
    f = SMOOTH[draw(st.sampled_from(list(SMOOTH)))]
    x = normal(draw(st.integers(0, 99)), draw(st.sampled_from([(1, 1), (3, 4)])))
    if valid:
        value, right = jax.value_and_grad(f)(x)
        calls = {
            "grad": lambda: (value, jaxbackprop.grad(f)(x)),
            "value_and_grad": lambda: jaxbackprop.value_and_grad(f)(x),
            "vjp": lambda: pulled(f, x),
            "inspect": lambda: inspected(f, x),
        }
        return Call(
            which,
            calls[which],
            lambda r: bool(jnp.isclose(r[0], value, 1e-5, 1e-6)) and g1(r[1], right, 9),
        )
    if which == "vjp":
        wrong = draw(
            st.sampled_from([jnp.ones(2), jnp.ones((), "int32"), (1.0, 2.0), None, "ct", {}])
        )
        return Call(which, lambda: jaxbackprop.vjp(f, x)[1](wrong), None, BAD)
    function = getattr(jaxbackprop, which)
    calls = [
        lambda: function(lambda x: x)(jnp.ones(3)),
        lambda: function(f)(x.astype("int32")),
        lambda: function(f)(x.astype("complex64")),
        lambda: function(lambda x: (jnp.sum(x), 1.0))(x),
        lambda: function(lambda x: jnp.sum(x).astype(int))(x),
        lambda: function(lambda x: None)(x),
        lambda: function(f, argnums=3)(x),
        lambda: function(f, argnums=(0, -3))(x),
        lambda: function(f, argnums="x")(x),
        lambda: function(f)("x"),  # None is a pytree without leaves, and f's own business
        lambda: function(f)(),
    ]
    if which != "inspect":
        calls.append(lambda: function(f, has_aux=True)(x))
        calls.append(lambda: function(lambda x: jax.pure_callback(np.sum, x[0, 0], x))(x))
    refused = (*BAD, jaxbackprop.UnsupportedPrimitive)
    return Call(which, draw(st.sampled_from(calls)), None, refused)


def pulled(f: Callable, x: jax.Array) -> tuple:
    value, pullback = jaxbackprop.vjp(f, x)
    return value, pullback(jnp.ones((), value.dtype))[0]


def inspected(f: Callable, x: jax.Array) -> tuple:
    inspection = jaxbackprop.inspect(f)(x)
    return inspection.value, inspection.gradients


def check_call(draw, valid: bool) -> Call:
    which = draw(st.sampled_from(["compare", "numerical_gradient", "check_gradients"]))
    f = SMOOTH[draw(st.sampled_from(["sin", "exp"]))]
    x = normal(draw(st.integers(0, 99)), (1, 3))
    g = jax.grad(f)(x)
    if valid:
        factor = draw(st.sampled_from([1, 1.01, -1]))
        calls = {
            "compare": (lambda: check.compare(g, factor * g).ok, lambda ok: ok == (factor == 1)),
            "numerical_gradient": (
                lambda: check.numerical_gradient(f)(x),
                lambda n: np.allclose(n, g, atol=2e-3),
            ),
            "check_gradients": (
                lambda: check.check_gradients(f, x, gradient=factor * g).ok,
                lambda ok: ok == (factor == 1),
            ),
        }
        return Call(which, *calls[which])
    calls = {
        "compare": [
            lambda: check.compare(g, {"g": g}),
            lambda: check.compare(g, g.T),
            lambda: check.compare(g, g.astype("float16")),
            lambda: check.compare(g, "g"),
            lambda: check.compare(g.astype(int), g.astype(int)),
            lambda: check.compare((g, None), (g, g)),
            lambda: check.compare(g.astype(complex), g),
        ],
        "numerical_gradient": [
            lambda: check.numerical_gradient(f)(x.astype(int)),
            lambda: check.numerical_gradient(lambda x: x)(x),
            lambda: check.numerical_gradient(f)(jnp.zeros((0,))),
            lambda: check.numerical_gradient(f, argnums=2)(x),
            lambda: check.numerical_gradient(f)("x"),
            lambda: check.numerical_gradient(lambda x: (jnp.sum(x), 1.0))(x),
            lambda: check.numerical_gradient(f)(),
        ],
        "check_gradients": [
            lambda: check.check_gradients(f, x, gradient=g.T),
            lambda: check.check_gradients(f, x, gradient=(g, g)),
            lambda: check.check_gradients(f, x, gradient=g.astype("float16")),
            lambda: check.check_gradients(lambda x: x, x, gradient=g),
            lambda: check.check_gradients(f, x.astype(int)),
            lambda: check.check_gradients(f, x, gradient=g, argnums=4),
            lambda: check.check_gradients(lambda x: jnp.sum(x) / 0, x, gradient=g),
            lambda: check.check_gradients(f, x, gradient="g"),
            lambda: check.check_gradients(f),
        ],
    }
    return Call(which, draw(st.sampled_from(calls[which])), None, BAD)


def data_call(draw, valid: bool) -> Call:
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    if valid:
        return Call(
            "one_hot",
            lambda: data.one_hot(labels, 5),
            lambda r: np.array_equal(r, np.eye(5)[labels]),
        )
    calls = [
        lambda: data.one_hot([*labels, 5], 5),
        lambda: data.one_hot([-1, *labels], 5),
        lambda: data.one_hot([labels], 5),
        lambda: data.one_hot([0.5], 5),
        lambda: data.one_hot("12", 5),
        lambda: data.one_hot(None, 5),
        lambda: data.one_hot([[1, 2], [3]], 5),
        lambda: data.one_hot(labels, 0),
        lambda: data.one_hot(labels, -2),
        lambda: data.one_hot(labels, 2.5),
        lambda: data.one_hot(labels, None),
        lambda: data.one_hot(labels, 5, "float31"),
        lambda: data.read_idx("/nowhere/images"),
        lambda: data.read_idx("/"),
        lambda: data.idx_folder("/nowhere"),
    ]
    return Call("data", draw(st.sampled_from(calls)), None, (*BAD, OSError))


OPTIMIZER = optax.sgd(0.1)
NETWORK = Network((3, 4, 2), "tanh")
INPUTS, TARGETS = normal(1, (6, 3)), normal(2, (6, 2))


def started() -> train.State:
    return train.start(NETWORK, OPTIMIZER, jax.random.key(0))


def train_call(draw, valid: bool) -> Call:
    which = draw(st.sampled_from(["run", "step", "evaluate"]))
    if valid:
        x, y = INPUTS.T, TARGETS.T
        calls = {
            "run": (lambda: train.run(NETWORK, OPTIMIZER, started(), INPUTS, TARGETS, batch=6)[0]),
            "step": (lambda: train.step(NETWORK, OPTIMIZER, started(), x, y)[0]),
            "evaluate": lambda: train.evaluate(NETWORK, started().params, INPUTS, TARGETS)[0],
        }
        params = started().params
        if which == "evaluate":
            cost = numpy_cost(Case(NETWORK, params, x, y))[0]
            return Call(which, calls[which], lambda r: bool(np.isclose(r, cost, 1e-5)))
        g = jax.grad(jaxbackprop.loss, argnums=1)(NETWORK, params, x, y)
        after = jax.tree.map(lambda p, g: p - 0.1 * g, params, g)
        return Call(which, calls[which], lambda s: g1(s.params, after, 4) and s.step == 1)
    rows = draw(st.sampled_from([(INPUTS[:, :2], TARGETS), (INPUTS, TARGETS[:, :1]),
        (INPUTS[:4], TARGETS), (INPUTS.astype("float16"), TARGETS),
        (INPUTS, TARGETS.astype("int32")), (INPUTS[:, 0], TARGETS),
        (INPUTS[:0], TARGETS[:0])]))  # fmt: skip
    run = lambda x, y, **k: train.run(NETWORK, OPTIMIZER, started(), x, y, **{"batch": 2} | k)  # noqa: E731
    calls = {
        "run": [
            lambda: run(*rows),
            lambda: run(INPUTS, TARGETS, batch=0),
            lambda: run(INPUTS, TARGETS, batch=7),
            lambda: run(INPUTS, TARGETS, batch=-1),
            lambda: run(INPUTS, TARGETS, batch=2.5),
            lambda: run(INPUTS, TARGETS, steps=-1),
            lambda: run(INPUTS, TARGETS, steps=0),
            lambda: run(INPUTS, TARGETS, steps=1.5),
        ],
        "step": [lambda: train.step(NETWORK, OPTIMIZER, started(), rows[0].T, rows[1].T)],
        "evaluate": [
            lambda: train.evaluate(NETWORK, started().params, *rows),
            lambda: train.evaluate(NETWORK, started().params, INPUTS, TARGETS, block=0),
            lambda: train.evaluate(NETWORK, started().params, INPUTS, TARGETS, block=-3),
        ],
    }
    return Call(which, draw(st.sampled_from(calls[which])), None, BAD)


KINDS = (
    *(network_call, init_call, pass_call, pass_call, pass_call),
    *(equation_call, graph_call, check_call, data_call, train_call),
)


def judged(call: Call) -> str | None:
    """What is wrong about how a call ended, or None."""
    try:
        result = call.call()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        # the annotations are checked by jaxtyping, and a path is refused by what opens it
        ours = last.startswith(ROOT) or isinstance(error, (jaxtyping.TypeCheckError, OSError))
        if isinstance(error, call.expected or ()) and ours and str(error):
            return None
        return f"{type(error).__name__} from {last}: {str(error)[:200]}"
    if call.right is None:
        return f"accepted: {str(result)[:80]}"
    return None if call.right(result) else f"wrong: {str(result)[:200]}"


def drawn(count: int, seed: int) -> tuple[list[str], Counter]:
    """The failures among `count` calls, and how many were valid and invalid."""
    failures, counts = [], Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(source):
        if counts.total() == count:
            return
        draw, valid = source.draw, source.draw(st.booleans())
        call = draw(st.sampled_from(KINDS))(draw, valid)
        counts["valid" if valid else "invalid"] += 1
        problem = judged(call)
        failures.extend([f"call {counts.total()}, {call.name}: {problem}"] if problem else [])

    while counts.total() < count:
        one()
    return failures, counts


def fuzz(root: pathlib.Path, count: int, seed: int) -> Report:
    """Invalid calls end in their named exception, valid ones pass the gates."""
    failures, counts = drawn(count, seed)
    figures = f"{counts['valid']} valid, {counts['invalid']} invalid"

    def faulty():
        module = sys.modules["jaxbackprop.backprop"]  # the package's attribute is the function
        without_mean = lambda delta: jnp.sum(delta, axis=1, keepdims=True)  # noqa: E731
        with planted(module, bias_gradient=without_mean):
            return drawn(300, seed)[0]

    return Report(failures, figures, control(faulty))
