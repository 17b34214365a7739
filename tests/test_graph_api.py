"""`grad`, `value_and_grad` and `vjp` take what jax's take; the rest they refuse in a sentence."""

import re

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbackprop import check, checkpoint, locate, watch
from jaxbackprop.graph import UnsupportedPrimitive, grad, inspect, value_and_grad, vjp

X = jnp.linspace(-1, 1, 5)


# --- Python's own control flow ---


def collatz_like(x):
    while x < 10:
        x = x * 3 if x < 3 else x * x
    return x


def chosen(x):
    return [jnp.sin, jnp.cos][int(x) % 2](x)


LOOKS_AT_VALUES = {
    "if": (lambda x: x * x if x > 0 else -x, (2.0, -2.0)),
    "while": (collatz_like, (1.5, 4.0)),
    "int": (chosen, (2.0, 3.0)),
    "item": (lambda x: x ** (1 + x.item()), (2.0,)),
    "index": (lambda x: X[jnp.int32(x)] * x + [1.0, 2.0, 3.0][jnp.int32(x)] * x, (2.0,)),
    "assert": (lambda x: jnp.sqrt(x) if bool(jnp.all(x > 0)) else 0 * x, (2.0, -1.0)),
    "sorted": (lambda x: sorted([x, x * x, 1.0])[2], (0.5, 3.0)),
    "around a jit": (lambda x: jax.jit(jnp.sin)(x) if jax.jit(jnp.cos)(x) > 0 else x, (0.5, 3.0)),
    "inside a vmap's axis": (
        lambda x: jax.vmap(lambda z: z * (x if x > 1 else -x))(X).mean() * x if x else x,
        (0.5, 2.0),
    ),
}


@pytest.mark.parametrize("name", LOOKS_AT_VALUES)
def test_python_may_look_at_values_outside_of_jit(name):
    f, points = LOOKS_AT_VALUES[name]
    for x in points:
        for ours, jaxs in [
            (grad(f), jax.grad(f)),
            (grad(grad(f)), jax.grad(jax.grad(f))),
            (jax.grad(grad(f)), jax.grad(jax.grad(f))),
            (grad(jax.grad(f)), jax.grad(jax.grad(f))),
        ]:
            np.testing.assert_allclose(ours(x), jaxs(x), rtol=1e-6)


def test_under_jit_there_are_no_values_and_jax_says_so():
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(grad(LOOKS_AT_VALUES["if"][0]))(1.0)


def test_f_runs_once_a_gradient_and_what_it_closes_over_may_change():
    calls, scale = [], {"is": 2.0}

    def f(x):
        calls.append(x)
        return jax.jit(lambda x: x * scale["is"])(x)

    assert grad(f)(1.0) == 2
    scale["is"] = 3.0
    assert grad(f)(1.0) == 3
    assert len(calls) == 2


def test_a_value_that_escapes_is_jaxs_error():
    kept = []
    grad(lambda x: kept.append(x) or x * x)(1.0)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jnp.sin(kept[0])


# --- types ---


WEAK = {
    "a Python float": (lambda x: x * x, 3.0),
    "through an array": (lambda x: (x * jnp.ones(3, jnp.bfloat16)).sum(), 3.0),
    "an array": (lambda x: (2.0 * x).sum(), jnp.ones(3)),
    "bfloat16": (lambda x: (x * 2.0).sum(), jnp.ones(3, jnp.bfloat16)),
    "unused": (lambda x: 1.0, 3.0),
    "in a scan": (lambda x: jax.lax.scan(lambda c, _: (c * x, None), 1.0, None, 3)[0], 3.0),
    "in a checkpoint": (jax.checkpoint(lambda x: jnp.sin(x) * x), 3.0),
    "in a cond": (lambda x: jax.lax.cond(x > 0, lambda x: x * x, lambda x: x, x), 3.0),
    "a custom_jvp": (jax.nn.softplus, 3.0),
}


@pytest.mark.parametrize("name", WEAK)
@pytest.mark.parametrize("around", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_gradient_is_typed_as_jaxs_is_weakly_too(name, around):
    f, x = WEAK[name]
    ours, theirs = around(value_and_grad(f))(x), around(jax.value_and_grad(f))(x)
    assert jax.tree.map(jax.typeof, ours) == jax.tree.map(jax.typeof, theirs)


def test_a_step_of_sgd_leaves_a_bfloat16_model_in_bfloat16():
    params = {"W": jnp.ones(3, jnp.bfloat16), "scale": 2.0}
    gradients = grad(lambda p: (p["W"] * p["scale"]).sum())(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    assert (params["W"] * params["scale"]).dtype == jnp.bfloat16


@pytest.mark.parametrize("f", [jnp.sin, jax.nn.softplus, lambda x: x * jnp.tanh(x)])
def test_strict_promotion_changes_nothing(f):
    x = jnp.linspace(0.1, 1, 4)
    plain = grad(lambda x: f(x).sum())(x)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(grad(lambda x: f(x).sum())(x), plain)


# --- options ---


def in_64_bits(x):
    with jax.enable_x64(True):
        wide = x.astype("float64")
        rows = jax.lax.scan(lambda c, a: (jnp.sin(c) * a, c), jnp.float64(1), wide)[1]
        largest = jnp.max(wide) + jnp.abs(jnp.fft.fft(wide)[1]) + wide[jnp.array([0, 2])].sum()
        return (rows.sum() + largest * jnp.linalg.norm(wide)).astype(x.dtype)


def test_64_bits_inside_of_a_function_of_32():
    """Of such a part jax has a TypeError, and in 64 bits all over its gradient."""
    x = jnp.array([0.3, 1.7, -0.4])
    with jax.enable_x64(True):
        right = jax.grad(in_64_bits)(x)
    for gradient in (grad(in_64_bits), jax.jit(grad(jax.jit(jax.checkpoint(in_64_bits))))):
        found = gradient(x)
        assert found.dtype == jnp.float32
        assert jnp.allclose(found, right, rtol=1e-6)
    assert jnp.allclose(inspect(in_64_bits)(x).gradients, right, rtol=1e-6)
    along = jax.jvp(grad(in_64_bits), (x,), (x,))[1]
    with jax.enable_x64(True):
        assert jnp.allclose(along, jax.jvp(jax.grad(in_64_bits), (x,), (x,))[1], rtol=1e-5)


def test_integers_are_allowed_where_asked_for_and_have_a_gradient_of_float0():
    tree = {"x": 2.0, "i": jnp.arange(3)}
    f = lambda t: t["x"] ** 2 * t["i"].sum()  # noqa: E731
    ours, theirs = (g(f, allow_int=True)(tree) for g in (grad, jax.grad))
    assert ours["x"] == theirs["x"]
    assert ours["i"].dtype == theirs["i"].dtype == jax.dtypes.float0
    assert ours["i"].shape == theirs["i"].shape


def test_the_aux_of_vjp_comes_third_and_may_hold_anything():
    out, pullback, aux = vjp(
        lambda x: (jnp.sin(x), {"twice": 2 * x, "why": None}), 1.0, has_aux=True
    )
    assert out == jnp.sin(1.0)
    assert aux == {"twice": 2.0, "why": None}
    assert pullback(jnp.ones_like(out))[0] == jnp.cos(1.0)


def test_an_aux_carries_the_gradient_of_what_is_around():
    f = lambda x: grad(lambda y: (y * y, x * y), has_aux=True)(x)[1]  # noqa: E731
    assert grad(f)(3.0) == jax.grad(f)(3.0) == 6


def test_a_gradient_in_a_gradient_by_different_variables():
    f = lambda grad: grad(lambda x: x * grad(lambda y: x * y**2)(3.0))(2.0)  # noqa: E731
    assert f(grad) == f(jax.grad) == 24


# --- refusals ---


class Model(equinox.Module):
    w: jax.Array
    activation: object

    def __call__(self, x):
        return self.activation(self.w * x).sum()


class Counted(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))
        self.count = nnx.Variable(jnp.int32(0))


class Outside:
    """Numbers of another library, which numpy can read."""

    def __array__(self, *_, **__):
        return np.ones(())


async def later(x):
    return x


def each(x):
    yield x


REFUSED = [
    (lambda: grad(lambda x: None)(1.0), "returned None"),
    (lambda: value_and_grad(lambda x: "high")(1.0), "returns str: return .* by has_aux=True"),
    (lambda: grad(lambda x: Outside())(1.0), "returns Outside: "),
    (lambda: grad(lambda x: np.array("a"))(1.0), "returns ndarray of str32"),
    (lambda: grad(lambda x: jax.random.key(0))(1.0), "the output is key<fry>"),
    (lambda: grad(None), "of a function, and this is None"),
    (lambda: inspect([1.0]), "of a function, and this is list"),
    (lambda: locate(later)(1.0), "later is an async function"),
    (lambda: watch(each)(1.0), "each is a generator function"),
    (lambda: watch(lambda x: 3 * x)(jnp.ones(2)), r"output shape \(2,\)"),
    (lambda: checkpoint.kept(lambda x: None, 1.0), "returned None"),
    (lambda: grad(jnp.sum, argnums="x")(1.0), "argnums is 'x', expected the number"),
    (lambda: grad(jnp.sin, argnums=1.5)(1.0), "argnums is 1.5, expected the number"),
    (lambda: grad(jnp.add, argnums=(1, 0, -1))(1.0, 2.0), "asks for argument 1 twice"),
    (lambda: grad(jnp.sum)(Outside()), "argument 0 is Outside; make it an array"),
    (lambda: grad(jnp.sum)(jax.ShapeDtypeStruct((), "float32")), "jax.eval_shape"),
    (lambda: vjp(jnp.sum, {"a": "x"}), r"argument 0\['a'\] is str"),
    (lambda: grad(lambda p: p["i"][0] * 1.0)({"i": [3]}), r"0\['i'\]\[0\] is int32.*allow_int"),
    (lambda: grad(lambda b: b * 1.0)(True), "argument 0 is bool.*allow_int"),
    (lambda: grad(lambda m: m(1.0))(Model(jnp.ones(3), jnp.tanh)), "equinox.partition"),
    (lambda: grad(lambda m: m.w.sum())(Counted()), "nnx.split"),
    (lambda: grad(lambda x: x, holomorphic=True)(1.0), "complex inputs.*argument 0 is float32"),
    (lambda: grad(lambda x: 1j)(1.0), "the output is complex64: holomorphic=True"),
    (lambda: grad(jnp.sum, argnums=(0, 2))(1.0, 2.0), "asks for argument 2.*2 positional"),
    (lambda: vjp(lambda x: x, 1.0, has_aux=True), r"a pair \(value, aux\).* returns an array"),
    (lambda: grad(lambda x: (x, 1, 2), has_aux=True)(1.0), "returns a tuple of 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_differentiated_is_refused_with_the_remedy(call, message, untyped):
    with pytest.raises(TypeError, match=message) as caught:
        call()
    assert not re.search(r"\n", str(caught.value))


@pytest.mark.parametrize("one", [np.int64(1), jnp.int32(1), True])
def test_the_number_of_an_argument_is_any_whole_number(one):
    assert grad(lambda x, y: x * y, argnums=one)(2.0, 3.0) == 2.0
    assert inspect(lambda x, y: x * y, argnums=one)(2.0, 3.0).gradients == 2.0
    assert watch(lambda x, y: x * y, "everything", one)(2.0, 3.0)[0][1] == 2.0
    assert check.check_gradients(lambda x, y: x * y, 2.0, 3.0, argnums=one).ok


def power(x, n, *, scale="sum"):
    return getattr(jnp, scale)(x ** int(n))


def test_jit_knows_the_arguments_of_f_by_their_names():
    x = jnp.arange(3.0)
    for transform in (grad, value_and_grad):
        found = transform(power)
        assert found.__name__ == "power"
        found = jax.jit(found, static_argnames=("n", "scale"), donate_argnames="x")
        assert jnp.array_equal(jax.tree.leaves(found(x + 0, 2))[-1], 2 * x)
    (_, gradient), _ = jax.jit(watch(power, "everything"), static_argnames=("n", "scale"))(x, 2)
    assert jnp.array_equal(gradient, 2 * x)


def test_a_while_of_jaxs_names_what_to_write_instead():
    with pytest.raises(UnsupportedPrimitive, match="scan"):
        grad(lambda x: jax.lax.while_loop(lambda c: c < 9, lambda c: 2 * c, x))(1.0)
