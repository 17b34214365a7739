"""Looking into real models: any argument, any loop, operations without a rule, effects, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify

from jaxbackprop import inspect
from jaxbackprop.graph.inspection.steps import Unknown


def records(inspection, operation: str) -> list:
    return [record for record in inspection if record.operation == operation]


def close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for g, ĝ in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, ĝ, rtol=1e-5, atol=1e-6)


# --- arguments ---


def test_floating_leaves_are_differentiated_and_everything_else_passes_through():
    def f(p, n):
        assert isinstance(p["n"], int)
        y = p["act"](p["w"] * p["scale"][0]) * p["n"] + n * p["ids"].sum()
        return jnp.sum(y) if p["name"] == "sum" and p["none"] is None else 0.0

    w = jnp.array([0.3, 0.5])
    p = {"w": w, "scale": (np.float32(2), 3), "act": jnp.sin, "n": 3, "ids": jnp.arange(3)}
    p |= {"name": "sum", "none": None, "key": jax.random.key(0)}
    found = inspect(f)(p, 2)
    np.testing.assert_allclose(found.value, 3 * np.sin(2 * w).sum() + 12, rtol=1e-6)
    np.testing.assert_allclose(found.gradients["w"], 6 * np.cos(2 * w), rtol=1e-6)
    np.testing.assert_allclose(found.gradients["scale"][0], 3 * w @ np.cos(2 * w), rtol=1e-6)
    others = {name: g for name, g in found.gradients.items() if name not in ("w", "scale")}
    assert all(g is None for g in (*others.values(), found.gradients["scale"][1]))


def test_argnums_are_as_before():
    f = lambda n, x, y: x * y * n  # noqa: E731
    assert inspect(f, argnums=(1, 2))(3, 2.0, 5.0).gradients == (15, 6)
    assert inspect(f, argnums=-1)(3, 2.0, 5.0).gradients == 6
    assert inspect(f, argnums=(0, 1))(3, 2.0, 5.0).gradients == (None, 15)
    with pytest.raises(TypeError, match="argument 3"):
        inspect(f, argnums=3)(3, 2.0, 5.0)
    with pytest.raises(TypeError, match=r"real inputs.*int"):
        inspect(f)(3, 2.0, 5.0)


def test_an_equinox_module_is_an_argument_as_it_is():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [eqx.nn.MLP(3, 3, 4, 2, key=keys[0]), eqx.nn.Dropout(0.5), eqx.nn.LayerNorm(3)]
    )
    loss = lambda model, x: jnp.sum(model(x, key=keys[1]) ** 3)  # noqa: E731
    x = jnp.array([0.1, -0.4, 0.9])
    found = inspect(loss)(model, x)
    arrays = eqx.filter(found.gradients, eqx.is_array)
    expected = eqx.filter_grad(loss)(model, x)
    close(eqx.tree_at(lambda m: m.layers[1].p, arrays, None), expected)


def test_an_nnx_model_with_key_counters_is_an_argument_as_it_is():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.drop, self.act = nnx.Dropout(0.5, rngs=rngs), jax.nn.softplus
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = self.act(layer(x))
            return self.norm(self.drop(x))

    loss = lambda model, x: jnp.sum(model(x) ** 3)  # noqa: E731
    model, x = Model(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (5, 4))
    count = int(model.drop.rngs.count[...])
    found = inspect(loss)(model, x)
    assert int(model.drop.rngs.count[...]) == count  # the model given is left as it was
    expected = nnx.grad(loss)(model, x)
    for i in range(2):
        for name in ("kernel", "bias"):
            g, ĝ = (getattr(m.layers[i], name)[...] for m in (found.gradients, expected))
            np.testing.assert_allclose(g, ĝ, rtol=1e-4, atol=1e-4)
    assert found.gradients.drop.rngs.count.get_value() is None


# --- loops whose number of steps the values decide ---


def newton(a):
    """√a by steps until they are small."""
    start = (a, jnp.inf, 0)
    go_on = lambda c: jnp.abs(c[0] - c[1]) > 1e-6  # noqa: E731
    return jax.lax.while_loop(go_on, lambda c: ((c[0] + a / c[0]) / 2, c[0], c[2] + 1), start)[0]


def test_a_while_is_unrolled_and_its_gradient_is_exact():
    found = inspect(newton)(2.0)
    np.testing.assert_allclose(found.value, 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(found.gradients, 0.5 / 2**0.5, rtol=1e-6)
    (quotient,) = [r for r in records(found, "div") if r.gradient is not None][:1]
    assert quotient.steps == len(quotient.value) > 3
    np.testing.assert_allclose(quotient.value[-1], 2**0.5, rtol=1e-6)


def test_a_while_in_a_scan_in_vmap_has_the_gradient_of_its_steps():
    def doubled(x):  # 2ⁿ x, n the first with 2ⁿ x > 8
        return jax.lax.while_loop(lambda c: c < 8, lambda c: c * 2, x)

    def f(xs):
        return jax.lax.scan(lambda c, x: (c + jax.vmap(doubled)(x).sum(), None), 0.0, xs)[0]

    xs = jnp.array([[1.0, 3.0], [5.0, 9.0]])
    found = inspect(f)(xs)
    np.testing.assert_allclose(found.value, 8 + 12 + 10 + 9)
    np.testing.assert_allclose(found.gradients, [[8, 4], [2, 1]])
    none = inspect(doubled)(9.0)
    assert (none.value, none.gradients) == (9, 1)


def test_a_nan_born_in_a_while_is_told_with_its_step():
    def f(x):
        body = lambda c: (jnp.sqrt(c[0] - x), c[1] + 1)  # noqa: E731
        return jax.lax.while_loop(lambda c: c[1] < 5, body, (x * 20.0, 0))[0]

    origin = inspect(f)(4.0).origin()
    assert (origin.direction, origin.operation, origin.scan_steps) == ("forward", "sqrt", (2,))
    assert "step            2 of the loop" in str(origin)


# --- operations without a rule ---


def through_host(x):
    """A function that only the host has: no rule can be."""
    kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
    with_host = lambda x: np.asarray(jnp.log(x))  # noqa: E731
    return jax.pure_callback(with_host, kind, x)


def test_behind_an_operation_without_a_rule_gradients_are_unknown_and_say_so():
    def f(x, y):
        a = jnp.sin(x)
        return jnp.sum(through_host(a) * y + x * y)

    x, y = jnp.array([0.3, 0.5]), jnp.ones(2)
    found = inspect(f, argnums=(0, 1))(x, y)
    np.testing.assert_allclose(found.value, np.sum(np.log(np.sin(x)) + x), rtol=1e-6)
    unknown, known = found.gradients
    assert isinstance(unknown, Unknown)
    np.testing.assert_allclose(known, np.log(np.sin(x)) + x, rtol=1e-6)
    assert records(found, "sin")[0].gradient is None
    np.testing.assert_allclose(records(found, "pure_callback")[0].gradient, y)
    assert "unknown behind pure_callback at test_inspect_any.py" in str(found)
    assert "unknown behind pure_callback" in str(found[0])
    assert "∂f/∂x = unknown" in found.mermaid()
    assert found.origin() is None


def test_what_is_not_finite_after_an_operation_without_a_rule_is_told():
    origin = inspect(lambda x: jnp.sum(through_host(x) * 2.0))(jnp.array([1.0, 0.0])).origin()
    assert (origin.direction, origin.operation) == ("forward", "pure_callback")
    origin = inspect(lambda x: jnp.sum(through_host(jnp.sqrt(x))))(-jnp.ones(2)).origin()
    assert (origin.direction, origin.operation) == ("forward", "sqrt")


def test_what_is_read_from_a_mutable_array_is_never_taken_for_a_constant():
    def f(x):
        box = jax.new_ref(jnp.zeros(()))
        box[...] = x * x
        return box[...] + x

    found = inspect(f)(3.0)
    assert found.value == 12
    assert found.gradients == 7


# --- rules of one's own ---


@jax.custom_jvp
def linear(x):
    return jnp.sum(x)


linear.defjvp(lambda primals, tangents: (linear(*primals), linear(*tangents)))


def test_a_rule_that_calls_its_own_function_on_the_tangents_ends():
    np.testing.assert_array_equal(inspect(linear)(jnp.arange(3.0)).gradients, jnp.ones(3))


@pytest.mark.parametrize(
    "f",
    [
        jax.nn.softplus,
        lambda x: jnp.logaddexp(x, 2.0),
        lambda x: jnp.logaddexp(2.0, jax.lax.stop_gradient(x)) * x,
        lambda x: jnp.frexp(x)[0] * x,
        lambda x: jnp.ldexp(x, 3),
        lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.relu6(x),
        lambda x: jnp.sinc(x),
    ],
)
def test_a_custom_jvp_with_operands_that_do_not_move_has_jaxs_gradient(f):
    found = inspect(f)(0.7).gradients
    new = isinstance(found, Unknown) and jax.__version_info__ >= (0, 11)  # another primitive there
    if not new:
        close(found, jax.grad(f)(0.7))


# --- effects ---


def test_effects_happen_once_in_order_and_the_gradient_passes_by(capfd):
    @jax.custom_vjp
    def g(x):
        jax.debug.print("body {}", x, ordered=True)
        return jnp.sin(x)

    def g_fwd(x):
        jax.debug.print("forward {}", x, ordered=True)
        return jnp.sin(x), x

    g.defvjp(g_fwd, lambda x, ct: (ct * jnp.cos(x),))

    def f(x):
        jax.debug.print("first {}", x, ordered=True)
        y = jax.jit(lambda x: (jax.debug.callback(lambda x: None, x), jnp.exp(x))[1])(x)
        checkify.debug_check(x > 0, "x is {x}", x=x)
        step = lambda c, _: (c * g(x), jax.debug.print("step"))[:1] * 2  # noqa: E731
        return jax.lax.scan(step, y, None, 2)[0]

    found = inspect(f)(0.5)
    jax.effects_barrier()
    assert capfd.readouterr().out.split("\n")[:-1].count("step") == 2
    h = lambda x: jnp.exp(x) * jnp.sin(x) ** 2  # noqa: E731
    close((found.value, found.gradients), jax.value_and_grad(h)(0.5))


# --- names ---


def test_a_scope_a_path_and_a_checkpoint_name_are_ways_to_ask():
    def f(params, x):
        with jax.named_scope("encoder"):
            for i, w in enumerate(params["layers"]):
                with jax.named_scope(f"dense_{i}"):
                    x = jnp.tanh(jax.jit(jnp.matmul)(w, x))
        hid = checkpoint_name(x, "hid")
        return jnp.sum(x**2) + jax.lax.stop_gradient(hid[0])

    w = 0.3 * jax.random.normal(jax.random.key(0), (3, 2, 2))
    found = inspect(f)({"layers": list(w)}, jnp.ones(2))
    assert {r.operation for r in found["encoder/dense_1"]} == {"dot_general", "tanh"}
    assert len(found["dense_1"]) == len(found["encoder/dense_1"])
    assert len(found["encoder"]) == 6
    assert [r.operation for r in found["layers[2]"]] == ["params.layers[2]", "dot_general"]
    assert [r.operation for r in found.named("layers[2]")] == ["params.layers[2]", "dot_general"]
    (hid,) = found.named("hid")
    assert list(found["hid"]) == [hid]
    assert "encoder/dense_1" in str(found)
    assert "encoder/dense_2" in str(found.largest(5))
    assert "encoder/dense_1" in repr(next(iter(found["encoder/dense_1"])))


def test_layers_made_in_one_loop_are_told_apart():
    eqx, nnx, linen = map(pytest.importorskip, ("equinox", "flax.nnx", "flax.linen"))

    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(3):
                x = linen.relu(linen.Dense(3)(x))
            return x

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(0)) for _ in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return x

    x, key = jnp.ones((2, 3)), jax.random.key(0)
    model = Dense()
    params = model.init(key, x)
    mlp = eqx.nn.MLP(3, 3, 3, 2, key=key)
    cases = [
        (lambda p: model.apply(p, x).sum(), params, "Dense_{}", "Dense/Dense_{}"),
        (lambda m: m(x).sum(), Model(), "layers[{}]", "m.layers[{}].kernel"),
        (lambda m: jax.vmap(m)(x).sum(), mlp, "layers[{}]", "m.layers[{}].weight"),
    ]
    for f, argument, asked, shown in cases:
        found = inspect(f)(argument)
        products = [r.number for r in records(found, "dot_general")]
        for i, number in enumerate(products):
            part = found[asked.format(i)]
            assert [r.number for r in records(part, "dot_general")] == [number]
            assert found[number].names[0] == shown.format(i)


def test_a_name_that_nothing_has_lists_the_nearest():
    def f(x):
        with jax.named_scope("encoder"), jax.named_scope("dense_1"):
            return jnp.sum(jnp.sin(x))

    found = inspect(f)(jnp.ones(2))
    with pytest.raises(KeyError, match=r"no name matches 'encoder/dens_1'.*encoder/dense_1"):
        found["encoder/dens_1"]
    with pytest.raises(KeyError, match="encoder/dense_1"):
        found.named("dese_1")
    with pytest.raises(ValueError, match=r"no line matches.*test_inspect_any.py:\d"):
        found.lines("test_inspect_any.py:1")
    assert len(found["encoder"].lines("test_inspect_any.py")) == 2


# --- Python that looks at values ---


def test_python_may_branch_on_a_value():
    def f(x, n):
        scale = jnp.arange(3.0).sum()
        for _ in range(int(n * x[0])):
            x = jnp.sin(x) * scale
        return x.sum() if x.max() > 0 else -x.sum() * x[1].item()

    x = jnp.array([2.0, 0.7])
    found = inspect(f)(x, 1)
    close((found.value, found.gradients), jax.value_and_grad(f)(x, 1))
    assert [r.line.function.split(".")[-1] for r in records(found, "sin")] == ["f", "f"]
    origin = inspect(lambda x: jnp.sqrt(x) if x >= 0 else x)(0.0).origin()
    assert (origin.direction, origin.operation) == ("backward", "sqrt")
