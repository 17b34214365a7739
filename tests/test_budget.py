"""The gradient of any function in a number of bytes: exact, and never in more than asked."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxbackprop import checkpoint
from jaxbackprop.checkpoint import within
from jaxbackprop.graph import grad, value_and_grad, vjp
from jaxbackprop.graph.budget import asking, emission, memory, options, planning, simulation
from jaxbackprop.graph.budget import loops as budget_loops
from jaxbackprop.graph.rules import UnsupportedPrimitive

X = jax.random.normal(jax.random.key(0), (256, 32))


def layers(n, width=32):
    keys = jax.random.split(jax.random.key(1), n)
    return [(jax.random.normal(k, (width, width)) / width**0.5, jnp.full(width, 0.1)) for k in keys]


def dense(params, x):
    for w, b in params:
        x = jnp.tanh(x @ w + b)
    return (x**2).mean()


def dropout(params, x):
    for i, (w, b) in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(jax.random.key(7), i), 0.8, x.shape)
        x = jnp.where(keep, jnp.tanh(x @ w + b) / 0.8, 0)
    return (x**2).mean()


def skips(params, x):
    """A U: each layer on the way down is read again on the way up."""
    half, kept = len(params) // 2, []
    for w, b in params[:half]:
        kept.append(x)
        x = jax.nn.gelu(x @ w + b)
    for w, b in params[half:]:
        x = jax.nn.gelu(x @ w + b) * kept.pop() if kept else x
    return (x**2).mean()


def own_checkpoint(params, x):
    for w, b in params:
        x = jax.checkpoint(lambda w, b, x: jnp.tanh(x @ w + b))(w, b, x)
    return (x**2).mean()


def scanned(params, x):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return (jax.lax.scan(lambda x, p: (jnp.tanh(x @ p[0] + p[1]), None), x, stacked)[0] ** 2).mean()


def loops(params, x):
    """A loop in a loop that runs backward, with outputs of its steps and a length that is prime."""

    def inner(x, p):
        return jnp.tanh(x @ p[0] + p[1]), x.mean(0)

    def outer(x, y):
        x, means = jax.lax.scan(inner, x, stacked)
        return x + y, means.sum(0)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    x, means = jax.lax.scan(outer, x, jnp.arange(7.0), reverse=True)
    return (x**2).mean() + (means**3).mean()


def keys_in_a_loop(params, x):
    def step(carry, p):
        x, key = carry
        key, own = jax.random.split(key)
        keep = jax.random.bernoulli(own, 0.8, x.shape)
        return (jnp.where(keep, jnp.tanh(x @ p[0] + p[1]), 0), key), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return (jax.lax.scan(step, (x, jax.random.key(3)), stacked)[0][0] ** 2).mean()


def branches(params, x):
    for i, (w, b) in enumerate(params):
        x = jax.lax.cond(x[0, 0] > i - 2, lambda x, w=w, b=b: jnp.tanh(x @ w + b), jnp.sin, x)
    return (x**2).mean()


FUNCTIONS = [dense, dropout, skips, own_checkpoint, scanned, loops, keys_in_a_loop, branches]


def attend(x, w, b):
    """Normalised, projected on two heads, with a softmax over all rows."""
    centred = x - x.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * b
    heads = jnp.einsum("nd,dhe->hne", y, w.reshape(32, 2, 16))
    scores = jax.nn.softmax(jnp.einsum("hne,hme->hnm", heads, heads) * 0.25)
    return x + jnp.einsum("hnm,hme->nhe", scores, heads).reshape(128, 32)


def attention(params, x):
    x = x[:128]
    for w, b in params:
        x = attend(x, w, b)
    return (x**2).mean()


def attention_in_a_loop(params, x):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return (jax.lax.scan(lambda x, p: (attend(x, *p), None), x[:128], stacked)[0] ** 2).mean()


def convolved(params, x):
    """Convolutions with batch norm."""
    x = jnp.tile(x.reshape(8, 16, 16, 4), (1, 1, 1, 2))
    for w, _ in params:
        w = w.reshape(-1)[: 9 * 64].reshape(3, 3, 8, 8)
        z = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu((z - z.mean((0, 1, 2))) / jnp.sqrt(z.var((0, 1, 2)) + 1e-5))
    return (x**2).mean()


def temporary(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def same(found, reference):
    """Normwise 1e-5 each leaf, of at least 1e-4 of the whole norm."""
    whole = np.sqrt(sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(reference)))
    for g, ĝ in zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True):
        assert g.shape == ĝ.shape
        assert g.dtype == ĝ.dtype
        assert np.linalg.norm(g - ĝ) <= 1e-5 * max(np.linalg.norm(ĝ), 1e-4 * whole)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("share", [2.0, 0.7])
def test_the_gradient_is_exact_and_its_program_needs_no_more_than_asked(f, share):
    params = layers(6)
    ordinary = jax.jit(jax.value_and_grad(f)).lower(params, X).compile()
    asked = int(share * max(ordinary.memory_analysis().temp_size_in_bytes, 500_000))
    program = jax.jit(value_and_grad(f, checkpoint=within(asked))).lower(params, X).compile()
    value, gradient = program(params, X)
    expected, reference = ordinary(params, X)
    assert np.allclose(value, expected, rtol=1e-6)
    same(gradient, reference)
    assert program.memory_analysis().temp_size_in_bytes <= asked


@pytest.mark.parametrize(
    ("f", "share"), [(skips, 0.75), (attention, 0.5), (convolved, 1), (convolved, 0.8)]
)
def test_a_first_prediction_is_what_the_program_needs(f, share):
    joint = asking.graph_of(f, (layers(6), X))
    graphs = planning.graphs_of(joint)
    graph, order = planning.cheapest(graphs, int(share * simulation.plain(graphs[0]).peak))
    compiled = planning.compiled_bytes(graph, order)
    assert abs(simulation.predicted(graph, order) / compiled - 1) <= 0.1
    if (
        f is not skips
    ):  # what a sum stretches or a product lays out anew would be there all the time
        early = [g._replace(spread=frozenset(), copied=frozenset()) for g in graph.groups]
        assert planning.compiled_bytes(graph._replace(groups=early), order) > 1.1 * compiled


def test_a_step_that_is_not_held_to_its_order_makes_early_what_its_sums_stretch(monkeypatch):
    def bytes():
        graphs = planning.graphs_of(asking.graph_of(attention_in_a_loop, (layers(6), X)))
        graph, order = planning.cheapest(graphs, 1_500_000)
        return simulation.predicted(graph, order), planning.compiled_bytes(graph, order)

    predicted, compiled = bytes()
    monkeypatch.setattr(options, "made_early", lambda back: 0)
    without, same_program = bytes()
    assert same_program == compiled
    assert without < predicted <= compiled


def normed(params, x):
    """A scaled and shifted norm, read by two products."""
    for w, b in params:
        mean = x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * (1 + b)
        y = (x - mean) * scale + b
        x = x + jnp.tanh(y @ w) * jnp.sin(y @ w.T)
    return (x**2).mean()


def test_a_product_of_two_arrays_is_not_kept_for_its_second_evaluation():
    graphs = planning.graphs_of(asking.graph_of(normed, (layers(8), X)))
    graph, order = planning.cheapest(graphs, int(0.2 * simulation.plain(graphs[0]).peak))
    compiled = planning.compiled_bytes(graph, order)
    assert abs(simulation.predicted(graph, order) / compiled - 1) <= 0.1
    kept = graph._replace(seen_through=graph.cheap)
    assert planning.compiled_bytes(kept, order) > 1.1 * compiled


def test_a_program_that_is_tried_has_the_numbers_that_the_function_closes_over():
    images = jnp.tile(X.reshape(8, 16, 16, 4), (1, 1, 1, 2))

    def loss(kernels):
        x = images
        for w in kernels:
            z = jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu((z - z.mean((0, 1, 2))) / jnp.sqrt(z.var((0, 1, 2)) + 1e-5))
        return (x**2).mean()

    kernels = [jnp.ones((3, 3, 8, 8))] * 2
    joint = asking.graph_of(loss, (kernels,))
    graph = planning.graphs_of(joint)[0]
    free = simulation.plain(graph)._replace(held=False)
    found = temporary(value_and_grad(loss, checkpoint=checkpoint.within("1GiB")), kernels)
    assert planning.compiled_bytes(graph, free) == found
    as_arguments = graph._replace(joint=joint._replace(known={}))
    assert planning.compiled_bytes(as_arguments, free) > found


def test_a_program_that_is_only_tried_needs_the_bytes_of_the_one_that_runs(monkeypatch):
    for f, share in itertools.product((attention, loops, keys_in_a_loop), (1, 0.5)):
        graphs = planning.graphs_of(asking.graph_of(f, (layers(3), X)))
        found = planning.cheapest(graphs, int(share * simulation.plain(graphs[0]).peak))
        graph, order = found or (graphs[-1], simulation.least(graphs[-1])[0])
        tried = planning.compiled_bytes(graph, order)
        with monkeypatch.context() as patch:
            patch.setattr(planning, "TRIED", {})
            assert planning.compiled_bytes(graph, order) == tried


@pytest.fixture
def compilations():
    """How many programs have been compiled, as jax tells it."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_plan_that_fits_at_once_is_compiled_once_and_a_program_once_tried_is_known(compilations):
    params, small = layers(6), jnp.tanh(X[:192])
    asked = within(int(1.1 * checkpoint.plan(dense, params, small, bytes="180KiB").compiled_bytes))
    gradient = value_and_grad(dense, checkpoint=asked)
    compilations.clear()
    _, first = gradient(params, small)
    assert len(compilations) == 1  # the program that runs
    gradient(params, small)
    assert len(compilations) == 1
    trained = jax.jit(value_and_grad(dense, checkpoint=asked))
    trained(params, small)
    tried = len(compilations) - 1
    assert tried >= 2  # in a user's program a plan is tried first
    jax.jit(lambda params: trained(params, small)[0])(params)
    assert len(compilations) == tried + 2
    same(first, jax.grad(dense)(params, small))


def test_a_call_whose_program_needs_more_than_was_asked_is_planned_again(monkeypatch):
    params, asked = layers(6), 200_000
    read, right = [], planning.cheapest
    analysis = jax.stages.Compiled.memory_analysis

    def wrong_at_first(graphs, room):
        return right(graphs, room) if read else (graphs[0], simulation.plain(graphs[0]))

    def recorded(self):
        read.append(analysis(self).temp_size_in_bytes)
        return analysis(self)

    monkeypatch.setattr(planning, "cheapest", wrong_at_first)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", recorded)
    _, found = value_and_grad(dense, checkpoint=within(asked))(params, X)
    assert read[0] > asked >= read[-1]
    same(found, jax.grad(dense)(params, X))


def test_what_is_evaluated_is_read_before_it_is_evaluated_again():
    graph = planning.graphs_of(asking.graph_of(dense, (layers(6), X)))[0]
    order = simulation.best(graph, 164_000)
    last = memory.ends(graph, order.steps)
    results = set(graph.joint.outputs)
    assert len(order.steps) > len(graph.groups)
    for time, step in enumerate(order.steps):
        writes = graph.groups[step].writes
        assert any(last[v, time] > time or v in results for v in writes)


def test_a_value_is_written_over_only_where_its_other_readers_are_done(monkeypatch):
    graph = planning.graphs_of(asking.graph_of(dense, (layers(8), X)))[0]
    order = simulation.best(graph, 230 * 1024)
    expected = simulation.predicted(graph, order)
    assert planning.compiled_bytes(graph, order) <= 1.01 * expected
    monkeypatch.setattr(emission.Evaluation, "in_turn", lambda self, group: {})
    assert planning.compiled_bytes(graph, order) > 1.1 * expected


def test_sums_over_arrays_with_dimensions_of_one_element_are_the_same():
    def f(w):
        y = jnp.tanh(X[None, :, None] @ w)
        return ((y * y.sum((0, 1), keepdims=True)).sum((1, 2)) ** 2).sum()

    w = layers(1)[0][0]
    least = checkpoint.least(f, w).bytes
    same(value_and_grad(f, checkpoint=within(least))(w)[1], jax.grad(f)(w))


def test_asked_for_what_jax_grad_needs_nothing_is_computed_again():
    params = layers(6)
    whole = temporary(jax.value_and_grad(dense), params, X)
    assert checkpoint.plan(dense, params, X, bytes=whole).factor == 1


def test_with_fewer_bytes_to_spend_no_more_are_needed():
    params = layers(6)
    plans = [
        checkpoint.plan(attention, params, X, bytes=f"{k}KiB") for k in (1800, 1400, 1000, 600)
    ]
    needed = [plan.compiled_bytes for plan in plans]
    assert all(less <= 1.02 * more for more, less in itertools.pairwise(needed))


def test_branches_that_read_alike_but_close_over_different_arrays_are_not_one():
    first, second = X[0], X[1]

    def f(x):
        a, b = (
            jax.lax.cond(x[0] > 0, jax.jit(lambda x, c=c: x * c), jnp.sin, x)
            for c in (first, second)
        )
        return jnp.sum(jnp.tanh(a) * jnp.cos(b))

    x = jnp.linspace(0.1, 1, 32)
    same(value_and_grad(f, checkpoint="1MiB")(x)[1], jax.grad(f)(x))


def test_a_training_step_stays_within_what_its_gradient_was_given():
    params, asked = layers(8), 200_000

    @jax.jit
    def step(params, x):
        value, gradient = value_and_grad(dense, checkpoint=within(asked))(params, x)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(params))  # no results of a step's
    assert temporary(step, params, X) <= asked + gradients
    reference = jax.grad(dense)(params, X)
    same(step(params, X)[1], jax.tree.map(lambda p, g: p - 0.1 * g, params, reference))


def test_a_pullback_stays_within_what_it_was_given():
    params, asked = layers(8), 200_000

    def there_and_back(params, ct):
        return vjp(lambda params: dense(params, X), params, checkpoint=within(asked))[1](ct)[0]

    assert temporary(there_and_back, params, jnp.float32(2)) <= asked
    reference = jax.grad(dense)(params, X)
    same(there_and_back(params, jnp.float32(2)), jax.tree.map(lambda g: 2 * g, reference))


@pytest.mark.parametrize("outer", [grad, jax.grad])
@pytest.mark.parametrize("f", [dense, scanned])
def test_a_gradient_in_so_many_bytes_is_differentiated_in_turn(f, outer):
    params, small = layers(6, 16), X[:64, :16]
    ordinary = jax.jit(jax.grad(f)).lower(params, small).compile().memory_analysis()
    asked = within(int(0.7 * ordinary.temp_size_in_bytes))

    def length(gradient):
        return lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient(params)))

    found = jax.jit(outer(length(lambda params: grad(f, checkpoint=asked)(params, small))))(params)
    expected = jax.grad(length(lambda params: jax.grad(f)(params, small)))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


def unasked_carry(x):
    """An infinite slope on a carry and on slices that nobody reads, in a loop in a loop."""

    def inner(c, _):
        return (jnp.sin(c[0]), jnp.sqrt(c[1] * 0)), jnp.sqrt(c[0] * 0)

    def outer(c, _):
        return jax.lax.scan(inner, c, None, 3)[0], None

    return jax.lax.scan(outer, (x, x), None, 2)[0][0]


def unasked_while(x):
    """A loop of unknown length, beside the gradient's way and on what nobody reads."""
    n = jax.lax.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * 2.0, s[1] + 1), (1.0, 0))[0]

    def step(c, t):
        s = jax.lax.while_loop(lambda s: s[1] < t, lambda s: (s[0] * 1.5, s[1] + 1), (c[1], 0))
        return (jnp.sin(c[0]) * n, s[0]), s[1]

    (end, _), counts = jax.lax.scan(step, (x, x), jnp.arange(5))
    return end * counts.sum()


@pytest.mark.parametrize("f", [unasked_carry, unasked_while])
def test_what_nobody_asks_of_a_loop_has_no_way_back(f, monkeypatch):
    found = grad(f, checkpoint="1MiB")(0.7)
    np.testing.assert_allclose(found, jax.grad(f)(0.7), rtol=1e-6)
    whole = budget_loops.Loop.ask
    monkeypatch.setattr(budget_loops.Loop, "ask", lambda self, _: whole(self, self.dependent[1]))
    try:
        wrong = grad(f, checkpoint="1MiB")(0.7)
    except UnsupportedPrimitive:
        wrong = jnp.nan
    assert jnp.isnan(wrong)


def test_less_than_the_least_is_refused_with_the_least_and_its_line():
    with pytest.raises(ValueError, match=r"least that one needs is \d+ bytes .*test_budget.py:\d+"):
        value_and_grad(dense, checkpoint=within(1000))(layers(3), X)


def test_under_vmap_it_is_refused_by_name():
    with pytest.raises(ValueError, match="put the vmap inside"):
        jax.vmap(lambda x: value_and_grad(dense, checkpoint="10MB")(layers(2), x))(
            jnp.stack([X, X])
        )


def test_a_plan_says_by_line_what_is_kept_and_what_is_computed_again():
    params = layers(6)
    plan = checkpoint.plan(dense, params, X, bytes="180KiB")
    assert plan.compiled_bytes <= 180 * 1024
    assert abs(plan.bytes - plan.compiled_bytes) <= 0.1 * plan.compiled_bytes
    assert plan.factor > 1
    (row,) = [row for row in plan.rows if row.again]
    assert row.line.text == "x = jnp.tanh(x @ w + b)"
    assert all(len(line) <= 100 for line in str(plan).splitlines())


def test_the_least_can_be_had_and_less_cannot():
    params = layers(6)
    least = checkpoint.least(dense, params, X)
    assert checkpoint.plan(dense, params, X, bytes=least.bytes).compiled_bytes <= least.bytes
    with pytest.raises(ValueError, match=f"{least.bytes} bytes"):
        checkpoint.plan(dense, params, X, bytes=least.bytes // 2)


def test_what_is_no_array_among_the_arguments_is_as_it_is():
    def f(x, name, times):
        for _ in range(times):
            x = getattr(jnp, name)(x)
        return jnp.sum(x)

    x = jnp.ones(1024)
    named, plain = ((f, x, "sin", 4), (lambda x: f(x, "sin", 4), x))
    assert checkpoint.kept(*named)[1:] == checkpoint.kept(*plain)[1:]
    assert checkpoint.frontier(*named, points=2).jax_bytes.keys()


def test_what_an_ordinary_pass_keeps_is_told_with_the_bytes_of_jax_grad():
    params = layers(6)
    kept = checkpoint.kept(dense, params, X)
    assert sum(row.kept for row in kept.walk.rows) >= 5 * X.nbytes
    assert kept.jax_bytes == temporary(jax.value_and_grad(dense), params, X)


def test_a_frontier_trades_bytes_for_time():
    points = checkpoint.frontier(dense, layers(6), X, points=4).points
    assert [p.bytes for p in points] == sorted(p.bytes for p in points)
    assert [p.factor for p in points] == sorted((p.factor for p in points), reverse=True)


@pytest.mark.parametrize("f", [lambda x: 1.0, lambda x: x])
def test_a_function_without_operations_needs_nothing(f):
    x = jnp.float32(2)
    assert checkpoint.least(f, x)[:] == (0, "a function without operations")
    assert checkpoint.plan(f, x, bytes=1).factor == 1.0
    assert {point.factor for point in checkpoint.frontier(f, x).points} == {1.0}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_barriers_and_a_cpu_gets_ties(platform):
    f = jax.jit(value_and_grad(dense, checkpoint=within("180KiB")))
    args = layers(6), X
    elsewhere = export.export(f, platforms=[platform])(*args).mlir_module()
    here = export.export(f, platforms=["cpu"])(*args).mlir_module()
    assert "optimization_barrier" in elsewhere
    assert "signbit" not in elsewhere
    assert "signbit" in here


def test_an_effect_is_done_once():
    seen = []

    def loud(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
            jax.debug.callback(lambda number: seen.append(float(number)), x[0, 0])
        return (x**2).mean()

    params = layers(6)
    _, gradient = value_and_grad(loud, checkpoint=within("180KiB"))(params, X)
    jax.effects_barrier()
    same(gradient, jax.grad(dense)(params, X))
    assert len(seen) == 6


def test_sums_between_devices_are_not_repeated():
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec

    def centred(params, x, mean=lambda x: jax.lax.pmean(x.mean(0), "i")):
        for w, b in params:
            z = x @ w
            x = jnp.tanh(z - mean(z) + b)
        return (x**2).mean()

    def sharded(gradient):
        return jax.shard_map(gradient, mesh=mesh, in_specs=(spec(), spec()), out_specs=spec())

    params = layers(6)
    plain, small = (sharded(value_and_grad(centred, checkpoint=c)) for c in (None, "240KiB"))
    same(
        jax.jit(small)(params, X)[1],
        jax.grad(lambda *a: centred(*a, lambda z: z.mean(0)))(params, X),
    )
    sums, again = (str(jax.make_jaxpr(f)(params, X)).count("psum") for f in (plain, small))
    assert sums == again
