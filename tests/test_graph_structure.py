"""Checkpoints and their policies, calls, branches, loops; effects, which are no mathematics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify

from jaxbackprop.graph import UnsupportedPrimitive, eager, grad

X = jnp.linspace(0.1, 1, 1000)
MATRIX = jnp.eye(100)
POLICIES = jax.checkpoint_policies


def temporary_bytes(transform, f, x):
    return jax.jit(transform(f)).lower(x).compile().memory_analysis().temp_size_in_bytes


def sines(x, names=()):
    for i in range(6):
        x = jnp.sin(x)
        x = checkpoint_name(x, f"sine {i}") if i in names else x
    return x


def looped(body, steps=20):
    return lambda x: jax.lax.scan(lambda c, _: (body(c), None), x, None, steps)[0].sum()


CHECKPOINTED = {
    "nothing saved": jax.checkpoint(sines),
    "no barrier asked for": jax.checkpoint(sines, prevent_cse=False),
    "one name": jax.checkpoint(
        lambda x: sines(x, (2,)), policy=POLICIES.save_only_these_names("sine 2")
    ),
    "all but a name": jax.checkpoint(
        lambda x: sines(x, (2,)), policy=POLICIES.save_anything_except_these_names("sine 2")
    ),
    "everything": jax.checkpoint(sines, policy=POLICIES.everything_saveable),
    "products": jax.checkpoint(
        lambda x: sines((x.reshape(10, 100) @ MATRIX).ravel()), policy=POLICIES.dots_saveable
    ),
    "a checkpoint in a checkpoint": jax.checkpoint(lambda x: jax.checkpoint(sines)(jnp.sin(x))),
    "no checkpoint": sines,
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_loop_stores_of_a_checkpointed_body_what_jaxs_does(name):
    f = looped(CHECKPOINTED[name])
    np.testing.assert_allclose(grad(f)(X), jax.grad(f)(X), rtol=1e-5)
    assert temporary_bytes(grad, f, X) <= temporary_bytes(jax.grad, f, X)


def test_a_checkpointed_body_is_evaluated_once_ahead_and_once_back():
    f = looped(jax.checkpoint(sines))
    assert str(jax.make_jaxpr(grad(f))(X)).count("= sin ") == 6 + 5


def test_a_policy_that_saves_spares_the_second_evaluation():
    everything = jax.checkpoint(sines, policy=POLICIES.everything_saveable)
    program = str(jax.make_jaxpr(grad(lambda x: everything(x).sum()))(X))
    assert program.count("= sin ") == 6


def test_calls_of_every_name_are_looked_into():
    """jax.grad of a checkpointed scan leaves a closed_call behind; three turns of c ↦ c sin c."""
    f = jax.checkpoint(
        lambda x: jax.lax.scan(lambda c, _: (c * jnp.sin(c), None), x, None, length=3)[0]
    )
    second = grad(jax.grad(f))(0.7)
    assert second == pytest.approx(3.1138887, rel=1e-6)
    assert grad(grad(f))(0.7) == pytest.approx(3.1138887, rel=1e-6)


def test_a_loop_around_a_while_is_refused_only_where_a_gradient_arrives():
    def f(x):
        def step(c, _):
            return jax.lax.while_loop(lambda v: v < 10, lambda v: 2 * v, c), None

        return jax.lax.scan(step, x, None, 3)[0]

    assert grad(lambda x: x * jax.lax.stop_gradient(f(x)))(1.0) == 16
    with pytest.raises(UnsupportedPrimitive, match="'while'"):
        grad(f)(1.0)


# --- effects ---


def noted(x, i):
    jax.debug.print("{}: {}", i, x, ordered=True)
    jax.debug.callback(lambda x: None, x)
    return checkpoint_name(jnp.sin(x), "sine")


def branched(x):
    return jax.lax.cond(x > 0, lambda x: noted(x, 0), lambda x: noted(x, 1), x)


LOUD = {
    "plain": (lambda x: noted(noted(x, 0), 1), "0: 0.5\n1: 0.479"),
    "jit": (jax.jit(lambda x: noted(x, 0)), "0: 0.5\n"),
    "checkpoint": (jax.checkpoint(lambda x: noted(x, 0)), "0: 0.5\n"),
    "cond": (branched, "0: 0.5\n"),
    "scan": (
        lambda x: jax.lax.scan(lambda c, i: (noted(c, i), None), x, jnp.arange(2))[0],
        "0: 0.5\n1: 0.479",
    ),
}


@pytest.mark.parametrize("name", LOUD)
@pytest.mark.parametrize("around", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_effects_happen_once_and_in_order_and_the_gradient_passes_by(name, around, capfd):
    f, expected = LOUD[name]
    found = around(grad(f))(0.5)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert printed.startswith(expected)
    assert printed.count(":") == expected.count(":")
    assert found == pytest.approx(float(jax.grad(f)(0.5)), rel=1e-6)


def test_an_effect_in_a_rule_of_ones_own_happens_on_the_way_back(capfd):
    f = jax.custom_vjp(jnp.sin)

    def bwd(x, ct):
        jax.debug.print("back")
        return (ct * jnp.cos(x),)

    f.defvjp(lambda x: (jnp.sin(x), x), bwd)
    jax.jit(grad(looped(f, 3)))(0.5)
    jax.effects_barrier()
    assert capfd.readouterr().out == "back\n" * 3


@pytest.mark.parametrize("loop", [lambda f: f, functools.partial(looped, steps=2), jax.checkpoint])
def test_checkifys_checks_hold_in_the_gradient_too(loop):
    def f(x):
        checkify.check(x > 0, "{x} is not positive", x=x)
        return jnp.log(1 + x)

    error, found = checkify.checkify(grad(loop(f)))(1.0)
    error.throw()
    assert found == pytest.approx(float(jax.grad(loop(lambda x: jnp.log(1 + x)))(1.0)))
    error, _ = checkify.checkify(jax.jit(grad(loop(f))))(-0.5)
    with pytest.raises(checkify.JaxRuntimeError, match="not positive"):
        error.throw()


# --- eagerly ---


def switched(x, which):
    c = jax.lax.scan(lambda c, r: (jnp.sin(c * r), None), x[0], x)[0]
    return jax.lax.switch(which, [jnp.sin, jnp.cos, jnp.tanh], c) * c


def test_a_second_eager_call_compiles_nothing_and_sees_other_values():
    f = jax.jit(switched)
    first = grad(f)(X[:3], 0)
    misses = eager._compiled.cache_info().misses
    for which in range(3):
        np.testing.assert_allclose(grad(f)(X[1:4], which), jax.grad(f)(X[1:4], which), rtol=1e-5)
    np.testing.assert_array_equal(grad(f)(X[:3], 0), first)
    assert eager._compiled.cache_info().misses == misses


def test_what_is_compiled_follows_a_change_of_type_and_context():
    f = jax.jit(lambda x: (x @ jnp.ones((3, 3), x.dtype)).sum())
    assert grad(f)(X[:3]).dtype == jnp.float32
    assert grad(f)(X[:3].astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert grad(f)(jnp.ones(3, jnp.float64)).dtype == jnp.float64


def test_a_zero_cotangent_is_told_through_a_jit():
    told = jax.custom_vjp(lambda x: (x, x))

    def bwd(_, cts):
        return (
            (10.0 if isinstance(cts[1], jax.custom_derivatives.SymbolicZero) else 1.0) * cts[0],
        )

    told.defvjp(lambda x: ((x.value, x.value), None), bwd, symbolic_zeros=True)
    assert grad(jax.jit(lambda x: told(x)[0]))(1.0) == 10
