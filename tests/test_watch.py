"""Statistics inside a jitted step, against jax.grad of the same rewritten graph and `inspect`."""

import functools
import pathlib
import sys

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

from jaxbackprop import inspect, plots, value_and_grad, watch
from jaxbackprop.graph.watching.probes import ears, norm_max, taking
from jaxbackprop.graph.watching.rewriting import plan
from jaxbackprop.graph.watching.selection import choose
from jaxbackprop.graph.watching.tracing import trace, visited

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))
import watch_benchmark as benchmark
from parts.measure import temporary_bytes

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (3, 4, 4)) / 2
HEAD = jax.random.normal(jax.random.key(1), (4, 2))
X = jax.random.normal(jax.random.key(2), (5, 4))
PARAMS = {"W": W, "head": HEAD}


@jax.custom_vjp
def clipped(x):
    return 2 * x


clipped.defvjp(lambda x: (2 * x, x), lambda x, ct: (jnp.clip(ct, -0.01, 0.01) * x,))


def layer(h, w):
    return jax.nn.silu(h @ w)


def straight(params, x):
    for w in params["W"]:
        x = layer(x, w)
    return jnp.mean((x @ params["head"]) ** 2)


def scanned(params, x):
    h, sizes = jax.lax.scan(lambda h, w: (layer(h, w), jnp.sum(h**2)), x, params["W"])
    return jnp.mean((h @ params["head"]) ** 2) + jnp.sum(jnp.log1p(sizes))


def reverse(params, x):
    h, _ = jax.lax.scan(lambda h, w: (layer(h, w), None), x, params["W"], reverse=True)
    return jnp.mean((h @ params["head"]) ** 2)


def nested(params, x):
    def outer(h, w):
        h, sums = jax.lax.scan(lambda h, c: (jnp.tanh(c * (h @ w)), h.sum()), h, jnp.arange(1.0, 3))
        return h, sums @ sums

    h, sums = jax.lax.scan(outer, x, params["W"])
    return jnp.mean((h @ params["head"]) ** 2) + sums.sum()


def remat(params, x):
    h, _ = jax.lax.scan(jax.checkpoint(lambda h, w: (layer(h, w), None)), x, params["W"])
    return jnp.mean(jax.checkpoint(lambda h: h @ params["head"])(h) ** 2)


def branches(params, x):
    def step(h, iw):
        i, w = iw
        return jax.lax.switch(
            i % 3, [lambda h: h @ w, lambda h: jnp.tanh(h @ w) @ w, lambda h: h], h
        ), None

    h, _ = jax.lax.scan(step, x, (jnp.arange(3), params["W"]))
    same = lambda h: jnp.sin(h @ params["head"])  # noqa: E731
    return jnp.mean(jax.lax.cond(h.sum() > 1e9, same, same, h) ** 2)


def scan_in_branch(params, x):
    def run(h):
        return jax.lax.scan(lambda h, w: (layer(h, w), None), h, params["W"])[0]

    h = jax.lax.cond(x.sum() > 1e9, lambda h: h @ W[0], run, x)
    h = jax.lax.cond(x.sum() > 1e9, run, lambda h: h @ params["W"][1], h)
    return jnp.mean((h @ params["head"]) ** 2)


def called(params, x):
    twice = jax.jit(layer)
    h = twice(twice(x, params["W"][0]), params["W"][1])
    return jnp.mean(jax.jit(lambda h: (h @ params["head"]) ** 2)(h))


def own_rules(params, x):
    h = clipped(x @ params["W"][0])
    return jnp.mean(jax.nn.softmax(jax.nn.relu(h) @ params["head"]) ** 2)


def while_forward(params, x):
    scale = jax.lax.while_loop(lambda s: s < 3, lambda s: s * 1.5, jnp.abs(x).max() / 10)
    return jnp.mean((jnp.tanh(x @ params["W"][0]) @ params["head"] / scale) ** 2)


def mapped(params, x):
    each = jax.vmap(lambda row: straight(params, row))(x)
    return jnp.mean(each) + jnp.linalg.norm(params["head"])


def integers(params, x):
    order = jnp.argsort(x[:, 0])
    return jnp.mean((x[order] @ params["W"][0]) ** 2) + jnp.max(params["head"])


PROGRAMS = [
    *(straight, scanned, reverse, nested, remat, branches, scan_in_branch, called, own_rules),
    *(while_forward, mapped, integers),
]
programs = pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)


def close(found, expected, tolerance=2e-5):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@programs
def test_values_gradients_and_tables_are_those_of_jaxs_gradient(f):
    """Of f itself; and of the very function that the walk goes over, probes and all."""
    found, seen = jax.jit(watch(f, "everything"))(PARAMS, X)
    traced = trace(f, 0, (PARAMS, X), {}, False)
    numbers, chosen = choose("everything", traced.parameters, traced.sites)
    rewritten = visited(traced, plan(chosen, taking(norm_max)), False)
    by_jax = jax.value_and_grad(rewritten, (0, 1), has_aux=True)

    def both(wanted, silence):
        return jax.value_and_grad(f)(PARAMS, X), by_jax(wanted, silence)

    expected, twin = jax.jit(both)(traced.wanted, ears(chosen, norm_max))
    close(found, expected)
    (_, (_, values)), (_, heard) = twin
    sites = seen[len(numbers) :]
    assert len(sites) == len(chosen) > 0
    for n, one in enumerate(sites):
        close(one.value, values[n][0])
        close(one.gradient, heard.get(n))


def records(inspection, labels):
    """The inspector's records of the watched operations, in order."""
    wanted = [(label.operation, str(label.line), label.shape) for label in labels]
    found = [r for r in inspection if (r.operation, str(r.line), r.shape) in set(wanted)]
    assert [(r.operation, str(r.line), r.shape) for r in found] == wanted
    return found


def as_inspected(statistics):
    size = max(abs(statistics.min), abs(statistics.max))
    return [statistics.norm, size]


@pytest.mark.parametrize(
    "f",
    [straight, scanned, reverse, remat, called, own_rules, while_forward],
    ids=lambda f: f.__name__,
)
def test_the_table_is_the_inspectors_in_every_step_of_every_scan(f):
    watched = watch(f)
    labels = watched.labels(PARAMS, X)
    (_, seen), inspection = jax.jit(watched)(PARAMS, X), inspect(f)(PARAMS, X)
    for label, one, record in zip(labels, seen, records(inspection, labels), strict=True):
        steps = record.by_step()  # in the order of computing
        for step, (value, gradient) in enumerate(steps[::-1] if f is reverse else steps):
            at = (step,) if label.steps else ()
            close([s[at] for s in one.value], as_inspected(value))
            close([s[at] for s in one.gradient], as_inspected(gradient))


def test_labels_need_shapes_alone_and_say_operation_line_scope_shape_and_steps():
    def f(params, x):
        with jax.named_scope("encoder"):
            h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, params["W"])
        return jnp.sum(h)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, X))
    (label,) = watch(f).labels(*shapes)
    assert label == watch(f).labels(PARAMS, X)[0]
    assert (label.operation, label.scope, label.shape, label.steps) == (
        *("dot_general", "encoder"),
        *((5, 4), (3,)),
    )
    assert label.line.text.startswith("h, _ = jax.lax.scan")


def test_a_branch_that_is_not_taken_is_flagged_and_has_zeros():
    _, seen = watch(branches)(PARAMS, X)
    by_line = [one.taken for one in seen]
    np.testing.assert_array_equal(by_line[0], [True, False, False])
    np.testing.assert_array_equal(by_line[1], [False, True, False])
    np.testing.assert_array_equal(by_line[2], [False, True, False])
    assert by_line[3]  # a cond's branches stand in the order of the index: false, true
    assert not by_line[4]
    assert float(seen[0].value.norm[1]) == float(seen[0].gradient.norm[1]) == 0
    assert float(seen[0].gradient.norm[0]) > 0


def test_a_scan_inside_a_branch_has_a_flag_a_step():
    _, seen = watch(scan_in_branch)(PARAMS, X)
    labels = watch(scan_in_branch).labels(PARAMS, X)
    taken = [one.taken is not None and bool(np.all(one.taken)) for one in seen]
    assert taken == [True, False, True, False, False]
    for label, one in zip(labels, seen, strict=True):
        assert one.taken is None or one.taken.shape == label.steps
        for statistics in filter(None, (one.value, one.gradient)):
            assert statistics.norm.shape == label.steps


def test_the_norm_of_gradients_whose_squares_are_no_float32_is_right():
    tiny, huge = jnp.full(4, 1e-30), jnp.full(4, 1e30)
    np.testing.assert_allclose(norm_max(tiny).norm, 2e-30, rtol=1e-6)
    np.testing.assert_allclose(norm_max(huge).norm, 2e30, rtol=1e-6)
    assert float(jnp.sqrt(jnp.sum(tiny**2))) == 0  # without the scale
    assert norm_max(jnp.zeros(3)) == (0, 0)
    assert np.isnan(norm_max(jnp.array([jnp.nan, jnp.inf, 1]))).all()
    assert np.isinf(norm_max(jnp.array([-jnp.inf, 1]))).all()
    half = norm_max(jnp.full(100, 300, jnp.float16))
    assert half.norm.dtype == jnp.float32
    assert float(half.norm) == 3000
    eight = norm_max(jnp.full(4, 3, jnp.float8_e4m3fn))
    assert eight == (6, 3)
    assert eight.norm.dtype == jnp.float32


def test_other_statistics_of_ones_own():
    counts = lambda x: {"zeros": jnp.sum(x == 0, dtype=jnp.float32), "mean": jnp.mean(x)}  # noqa: E731
    watched = watch(own_rules, lambda label: label.operation == "relu", statistics=counts)
    _, (seen,) = jax.jit(watched)(PARAMS, X)
    h = jax.nn.relu(clipped(X @ W[0]))
    close(seen.value, counts(h))
    g = jax.grad(lambda h: jnp.mean(jax.nn.softmax(h @ HEAD) ** 2))(h)
    close(seen.gradient, counts(g))


def test_of_names_scopes_lines_files_names_parameters_and_predicates():
    def f(params, x):
        with jax.named_scope("encoder"):
            for i, w in enumerate(params["W"]):
                with jax.named_scope(f"dense_{i}"):
                    x = jax.nn.relu(x @ w)
        hid = checkpoint_name(x, "hid")
        return jnp.sum(hid @ params["head"])

    def labels(of):
        return [(la.operation, la.scope) for la in watch(f, of).labels(PARAMS, X)]

    relus = [("relu", f"encoder/dense_{i}") for i in range(3)]
    # The end of the encoder is that of its last layer.
    assert labels("scopes") == [*relus, ("name", "hid")]
    assert labels("encoder/dense_1") == labels("dense_1") == [relus[1]]
    assert labels("encoder") == relus
    assert labels("hid") == [("name", "hid")]
    assert labels("parameters") == [("parameter", "params.W"), ("parameter", "params.head")]
    assert labels("head") == [("parameter", "params.head")]
    assert labels(lambda la: la.operation == "dot_general" and "_2" in la.scope) == [
        ("dot_general", "encoder/dense_2")
    ]
    line = watch(f, "dense_1").labels(PARAMS, X)[0].line
    assert [o for o, _ in labels(str(line))] == ["dot_general", "relu"] * 3
    of_file = len(labels("everything")) - len(labels("parameters"))
    assert len(labels("test_watch.py")) == of_file


def test_argnums_in_the_place_of_a_name_are_told_their_own(untyped):
    with pytest.raises(TypeError, match=r"are named: watch\(f, argnums=\(0, 1\)\)"):
        watch(straight, (0, 1)).labels(PARAMS, X)  # type: ignore[arg-type]


def test_what_matches_nothing_is_told_with_the_nearest_that_exist():
    def f(params, x):
        with jax.named_scope("encoder"):
            return jnp.sum(x @ params["W"][0])

    line = str(watch(f).labels(PARAMS, X)[0].line)
    for of, nearest in (("encodr", "encoder"), ("test_watch.py:1", line), ("haed", "params.head")):
        with pytest.raises(ValueError, match=f"matches '{of}'; the nearest are .*{nearest}"):
            watch(f, of)(PARAMS, X)
    with pytest.raises(ValueError, match="no operation is in a named scope"):
        watch(straight, "scopes").labels(PARAMS, X)
    with pytest.raises(ValueError, match=r"operations are .*reduce_sum"):
        watch(lambda x: jnp.sum(x)).labels(X)
    with pytest.raises(ValueError, match="true of none of"):
        watch(straight, lambda label: False).labels(PARAMS, X)


def test_everything_in_a_large_function_says_its_cost_before_compiling():
    def deep(x):
        for _ in range(300):
            x = jnp.sin(x)
        return x.sum()

    with pytest.warns(UserWarning, match="everything is 301 values"):
        watch(deep, "everything").labels(X)


def test_scalars_are_pythons_own_numbers_one_a_step():
    labels = watch(scanned).labels(PARAMS, X)
    _, seen = jax.jit(watch(scanned))(PARAMS, X)
    found = watch.scalars(labels, seen)
    assert all(type(number) is float for number in found.values())
    assert len(found) == 2 * 2 * (3 + 1)
    name = f"params.W/dot_general {labels[0].line}"
    assert found[f"gradient norm/{name}/step 2"] == float(seen[0].gradient.norm[2])
    branch = watch.scalars(watch(branches).labels(PARAMS, X), watch(branches)(PARAMS, X)[1])
    assert len(branch) == 2 * 2 * (1 + 1 + 1 + 1)  # what was not computed is left out
    stacked = jax.tree.map(lambda a: jnp.stack([a] * 5), seen)
    with pytest.raises(ValueError, match="one step of training at a time"):
        watch.scalars(labels, stacked)


def test_the_figure_of_a_run_has_a_line_for_each_watched_value(tmp_path):
    _, seen = watch(branches)(PARAMS, X)
    step = watch.scalars(watch(branches).labels(PARAMS, X), seen)
    other = {name: number for name, number in step.items() if "step 0" not in name}
    update = {"update/W": 1e-3}
    figure = plots.watched([step | update, other | update], tmp_path / "watched.png")
    assert (tmp_path / "watched.png").stat().st_size > 0
    assert [axes.get_title() for axes in figure.axes] == ["value norm", "gradient norm", "update"]
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 1]


def test_a_long_scan_is_logged_by_its_largest_step():
    def f(w, x):
        return jnp.sum(jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=100)[0])

    _, seen = watch(f)(W[0], X)
    found = watch.scalars(watch(f).labels(W[0], X), seen)
    assert len(found) == 4
    assert max(seen[0].gradient.max.tolist()) in found.values()


def test_argnums_has_aux_and_keywords_are_as_in_value_and_grad():
    def f(a, b, *, scale):
        out = scale * jnp.sum(jnp.tanh(a @ b))
        return out, {"out": a}

    for argnums in (0, 1, (0, 1), (1, 0), -1):
        ((value, aux), gradients), seen = watch(f, argnums=argnums, has_aux=True)(
            X, HEAD, scale=2.0
        )
        expected = value_and_grad(f, argnums, has_aux=True)(X, HEAD, scale=2.0)
        close(((value, aux), gradients), expected)
        assert jax.tree.structure(gradients) == jax.tree.structure(expected[1])
        assert len(seen) == 1


def test_a_pytree_with_functions_and_counters_passes_through():
    def f(model, x):
        return jnp.sum(model["activation"](x @ model["W"])) * model["count"]

    model = {"W": HEAD, "activation": jnp.tanh, "count": jnp.array(3), "name": "mlp"}
    (value, gradients), _ = watch(f)(model, X)
    close(value, 3 * jnp.sum(jnp.tanh(X @ HEAD)))
    assert gradients["activation"] is gradients["count"] is gradients["name"] is None
    close(gradients["W"], jax.grad(lambda w: 3 * jnp.sum(jnp.tanh(X @ w)))(HEAD))
    with pytest.raises(TypeError, match="real or complex inputs"):
        watch(f)(3, X)


def test_an_equinox_step_tells_its_layers_by_their_paths():
    class Model(equinox.Module):
        layers: list
        deep: equinox.nn.Linear

        def __init__(self, key):
            make = lambda key: equinox.nn.Linear(4, 4, key=key)  # noqa: E731
            self.layers = [make(key), make(key)]
            self.deep = equinox.filter_vmap(make)(jax.random.split(key, 3))

        def __call__(self, x):
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            arrays, static = equinox.partition(self.deep, equinox.is_array)
            step = lambda h, a: (jnp.tanh(equinox.combine(a, static)(h)), None)  # noqa: E731
            return jax.lax.scan(step, x, arrays)[0]

    def loss(model, x):
        return jnp.mean(jax.vmap(model)(x) ** 2)

    model = Model(KEY)
    found, seen = equinox.filter_jit(lambda model, x: watch(loss)(model, x))(model, X)
    close(found, equinox.filter_value_and_grad(loss)(model, X))
    assert modules_in(watch(loss).labels(model, X), seen) == [
        *("model.layers[0].weight", "model.layers[1].weight", "model.deep.weight"),
    ]


def modules_in(labels, seen):
    """The names that are logged, without kind, operation and step."""
    names = [name.split("/dot_general")[0] for name in watch.scalars(labels, seen)]
    return list(dict.fromkeys(name.partition("/")[2] for name in names))


def test_a_flax_nnx_step_tells_its_layers_by_their_paths():
    class Model(nnx.Module):
        def __init__(self, rngs):
            make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs)))
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
            self.deep, self.drop = make(rngs), nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = self.drop(layer(x))
            scan = nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return scan(lambda x, layer: jnp.tanh(layer(x)))(x, self.deep)

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    def loss(params, graph, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return jnp.mean(model(x) ** 2), nnx.state(model, nnx.Not(nnx.Param))

    @nnx.jit
    def step(model, optimizer, x):
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        ((_, rest), gradients), seen = watch(loss, has_aux=True)(params, graph, rest, x)
        nnx.update(model, rest)
        optimizer.update(model, gradients)
        return gradients, seen

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    labels = watch(loss, has_aux=True).labels(params, graph, rest, X)
    expected, _ = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, graph, rest, X)
    gradients, seen = step(model, optimizer, X)
    close(gradients, expected)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, before, gradients)
    close(nnx.state(model, nnx.Param), moved)
    assert modules_in(labels, seen) == [
        *("params.layers.0.kernel", "params.layers.1.kernel", "params.deep.kernel"),
    ]


def test_a_flax_linen_step_tells_its_layers_by_their_scopes():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                x = linen.Dense(4)(x)
            scan = linen.scan(
                lambda layer, h, _: (jnp.tanh(layer(h)), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(linen.Dense(4, name="deep"), x, None)[0]

    model = Model()
    params = model.init(KEY, X)
    loss = lambda params, x: jnp.mean(model.apply(params, x) ** 2)  # noqa: E731
    found, seen = jax.jit(watch(loss))(params, X)
    close(found, jax.value_and_grad(loss)(params, X))
    names = modules_in(watch(loss).labels(params, X), seen)
    assert [name.partition("/")[0] + "/" + name.rpartition("/")[2] for name in names] == [
        *("Model/Dense_0", "Model/Dense_1", "Model/deep"),
    ]


def test_errors_are_those_of_value_and_grad():
    with pytest.raises(TypeError, match="scalar-output"):
        watch(lambda x: x @ HEAD)(X)
    with pytest.raises(TypeError, match="a pair"):
        watch(lambda x: jnp.sum(x @ HEAD), has_aux=True)(X)


def test_in_a_jitted_training_step_that_is_scanned_over_steps():
    """Of each training step, and of each step of the scan inside it."""

    def train_step(params, x):
        (_, gradients), seen = watch(scanned)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), seen

    batches = jnp.stack([X, 2 * X])
    _, seen = jax.jit(functools.partial(jax.lax.scan, train_step))(PARAMS, batches)
    assert seen[0].gradient.norm.shape == (2, 3)
    params, first = train_step(PARAMS, X)
    close(jax.tree.map(lambda a: a[0], seen), first)
    close(jax.tree.map(lambda a: a[1], seen), train_step(params, 2 * X)[1])


def test_under_vmap_there_is_a_table_for_each():
    _, seen = jax.vmap(lambda x: watch(straight)(PARAMS, x))(jnp.stack([X, 2 * X]))
    close(jax.tree.map(lambda a: a[1], seen), watch(straight)(PARAMS, 2 * X)[1])


@pytest.mark.parametrize("of", ["products", "scopes"])
@pytest.mark.parametrize("name", ["CNN", "transformer", "scanned transformer"])
def test_a_watched_step_needs_no_more_memory(name, of):
    """Of the compiled gradient: within 5 % of the unwatched one's temporary bytes."""
    sizes = {"length": 32, "d": 64, "layers": 2}
    if name == "CNN":
        params, loss, x = benchmark.cnn(8, channels=8, side=16)
    else:
        params, loss, x = benchmark.transformer(2, name.startswith("scanned"), **sizes)
    plain, watched = (
        temporary_bytes(jax.jit(f).lower(params, x).compile())
        for f in (value_and_grad(loss), watch(loss, of))
    )
    on_new_jax = (name, of) == ("CNN", "scopes") and jax.__version_info__ >= (0, 11)
    assert watched <= (1.08 if on_new_jax else 1.05) * plain  # 8 % there


def test_ratios_of_update_to_weight_by_leaf():
    updates = jax.tree.map(lambda p: -0.01 * p, PARAMS) | {"head": jnp.zeros_like(HEAD)}
    found = watch.update_ratios(updates, PARAMS)
    assert list(found) == ["update/W", "update/head"]
    close(list(found.values()), [0.01, 0.0])
