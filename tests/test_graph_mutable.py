"""Mutable arrays: what f writes has the gradient of the same function written without them.

The twins on the right are differentiated by jax.grad. Where a mutable array is made into a value
by hand, jax's own rules for mutable arrays have no part in what is expected: they are wrong for an
index that names a place twice, and for a checkpoint in a scan.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import g1
from jax import lax

import jaxbackprop
from jaxbackprop import (
    UnsupportedPrimitive,
    check,
    checkpoint,
    grad,
    inspect,
    per_example,
    watch,
)

X = jnp.array([0.3, -0.7, 1.1])
RISING = jnp.arange(1.0, 4.0)
new_ref = jax.new_ref


def whole(x):
    ref = new_ref(jnp.zeros(3))
    ref[...] = jnp.sin(x)
    ref[0] += x[1]
    return jnp.sum(ref[...] ** 2)


def whole_(x):
    return jnp.sum(jnp.sin(x).at[0].add(x[1]) ** 2)


def slices(x):
    ref = new_ref(jnp.zeros((3, 4)))
    ref[:, 1:3] = jnp.outer(x, jnp.ones(2))
    ref[::2, 0] = x[:2]
    ref[0] += x[0]
    return jnp.sum(ref[...] ** 2) + ref[1, 2]


def slices_(x):
    a = jnp.zeros((3, 4)).at[:, 1:3].set(jnp.outer(x, jnp.ones(2))).at[::2, 0].set(x[:2])
    a = a.at[0].add(x[0])
    return jnp.sum(a**2) + a[1, 2]


def twice_named(x):
    ref, i = new_ref(jnp.zeros((3, 4))), jnp.array([0, 2, 0])
    jax.ref.addupdate(ref, (i, 1), x)
    ref[:, i] = jnp.outer(x, x)
    return jnp.sum(ref[...] ** 2) + jnp.sum(ref[i, i])


def twice_named_(x):
    i = jnp.array([0, 2, 0])
    a = jnp.zeros((3, 4)).at[i, 1].add(x).at[:, i].set(jnp.outer(x, x))
    return jnp.sum(a**2) + jnp.sum(a[i, i])


def computed_place(x):
    ref, i = new_ref(jnp.zeros((3, 4))), jnp.argmax(x)
    ref[i] = jnp.sin(x[i]) * jnp.ones(4)
    ref[i, 1] += x[0]
    return jnp.sum(ref[...] ** 2)


def computed_place_(x):
    i = jnp.argmax(x)
    return jnp.sum(jnp.zeros((3, 4)).at[i].set(jnp.sin(x[i])).at[i, 1].add(x[0]) ** 2)


def swapped(x):
    ref = new_ref(x)
    old = jax.ref.swap(ref, ..., x**2)
    return jnp.sum(old * jax.freeze(ref))


def jitted(x):
    ref = new_ref(x)

    @jax.jit
    def step(ref, x):
        ref[...] = ref[...] * jnp.sin(x)
        return ref[0] * x

    return jnp.sum(step(ref, x) + step(ref, x) + ref[...])


def jitted_(x):
    a = x * jnp.sin(x)
    b = a * jnp.sin(x)
    return jnp.sum(a[0] * x + b[0] * x + b)


def carried(x, turn=lambda body: body):
    """In jax 0.10 and 0.12 the gradient of it under jax.checkpoint is wrong."""
    ref = new_ref(x)

    def body(c, t):
        ref[...] = jnp.sin(ref[...]) * c
        return c + t, ref[1]

    _, ys = lax.scan(turn(body), 1.0, RISING, reverse=True)
    return jnp.sum(ref[...] ** 2) + jnp.sum(ys**3)


def carried_(x):
    def body(state, t):
        a, c = state
        a = jnp.sin(a) * c
        return (a, c + t), a[1]

    (a, _), ys = lax.scan(body, (x, 1.0), RISING, reverse=True)
    return jnp.sum(a**2) + jnp.sum(ys**3)


def rows(x):
    ref = new_ref(jnp.outer(x, x))

    def body(c, row):
        row[...] = jnp.sin(row[...]) * c
        return c + row[...], None

    end, _ = lax.scan(body, x, ref)
    return jnp.sum(end) + jnp.sum(ref[...] ** 2)


def rows_(x):
    def body(c, row):
        row = jnp.sin(row) * c
        return c + row, row

    end, after = lax.scan(body, x, jnp.outer(x, x))
    return jnp.sum(end) + jnp.sum(after**2)


def in_a_branch(x):
    """Three branches: one writes, one reads, one makes an array of its own."""
    ref = new_ref(x)

    def writes(x):
        ref[...] = jnp.sin(x)
        return ref[0]

    def makes(x):
        own = new_ref(x)
        own[1] = own[0] * x[2]
        return own[1]

    y = [lax.switch(i, [writes, lambda x: ref[1], makes], x) for i in jnp.arange(3)]
    return jnp.sum(ref[...] ** 2) + y[0] + y[1] * y[2]


def in_a_branch_(x):
    a = jnp.sin(x)
    return jnp.sum(a**2) + a[0] + a[1] * x[0] * x[2]


def in_a_checkpoint(x):
    ref = new_ref(x)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def step(x):
        own = new_ref(x)
        own[...] *= jnp.outer(x, x) @ ref[...]
        ref[...] = own[...]
        return own[0]

    return step(x) + step(jnp.cos(x)) + jnp.sum(ref[...] ** 2)


def in_a_checkpoint_(x):
    a = x * (jnp.outer(x, x) @ x)
    y = jnp.cos(x)
    b = y * (jnp.outer(y, y) @ a)
    return a[0] + b[0] + jnp.sum(b**2)


def mapped(x):
    def one(x, i):
        ref = new_ref(jnp.ones(4) * x)
        ref[i] = jnp.sin(x)
        ref[1:3] += ref[:2] * x
        return ref[i] + ref[...]

    return jnp.sum(jax.vmap(one)(x, jnp.array([0, 3, 1])) ** 2)


def mapped_(x):
    def one(x, i):
        a = (jnp.ones(4) * x).at[i].set(jnp.sin(x))
        a = a.at[1:3].add(a[:2] * x)
        return a[i] + a

    return jnp.sum(jax.vmap(one)(x, jnp.array([0, 3, 1])) ** 2)


def counted(x):
    count = new_ref(jnp.zeros((), jnp.int32))

    def turn(c):
        count[...] += 1
        return c * 2

    lax.while_loop(lambda c: c < 50.0, turn, 1.0)
    return jnp.sum(x ** count[...])


def without_gradient(x):
    ref = new_ref(jnp.zeros(3), kind="no_grad_no_remat")
    ref[...] = 2 * x
    return jnp.sum(ref[...] * x)


TWINS = {
    "whole": (whole, whole_),
    "slices": (slices, slices_),
    "twice named": (twice_named, twice_named_),
    "a computed place": (computed_place, computed_place_),
    "swap": (swapped, lambda x: jnp.sum(x**3)),
    "jit": (jitted, jitted_),
    "scan": (carried, carried_),
    "scan of a checkpoint": (lambda x: carried(x, jax.checkpoint), carried_),
    "rows of a scan": (rows, rows_),
    "switch": (in_a_branch, in_a_branch_),
    "checkpoint": (in_a_checkpoint, in_a_checkpoint_),
    "vmap": (mapped, mapped_),
    "while": (counted, lambda x: jnp.sum(x**6)),
    "no gradient": (without_gradient, lambda x: jnp.sum(2 * lax.stop_gradient(x) * x)),
}


@pytest.mark.parametrize("name", TWINS)
def test_what_is_written_has_its_gradient_there_and_inside_of_jit(name):
    f, twin = TWINS[name]
    right = jax.value_and_grad(twin)(X)
    assert g1(jaxbackprop.value_and_grad(f)(X), right, 4)
    assert g1(jaxbackprop.value_and_grad(jax.jit(f))(X), right, 4)


def test_a_place_that_is_named_twice_and_written_once_is_told_apart():
    """A wrong version: `+=` reads, adds and writes, and of two sums at one place one is left."""

    def once(x):
        ref, i = new_ref(jnp.zeros((3, 4))), jnp.array([0, 2, 0])
        ref[i, 1] += x
        ref[:, i] = jnp.outer(x, x)
        return jnp.sum(ref[...] ** 2) + jnp.sum(ref[i, i])

    assert not g1(grad(once)(X), jax.grad(twice_named_)(X), 4)


def test_outside_of_jit_python_looks_at_what_was_written():
    def f(x):
        ref = new_ref(x)
        ref[0] = x[1] * x[2]
        ref[...] *= 2 if ref[0] > 0 else x
        return jnp.sum(ref[...])

    def twin(x):
        return jnp.sum(x.at[0].set(x[1] * x[2]) * x)

    assert g1(grad(f)(X), jax.grad(twin)(X), 4)


@pytest.mark.parametrize("name", ["jit", "scan", "switch"])
def test_second_derivatives_and_forward_over_reverse(name):
    f, twin = TWINS[name]
    along = jnp.cos(X)
    right = jax.jvp(jax.grad(twin), (X,), (along,))[1]
    assert g1(jax.jvp(grad(f), (X,), (along,))[1], right, 20)
    assert g1(grad(lambda x: grad(f)(x) @ along)(X), right, 20)
    assert g1(jax.grad(lambda x: grad(f)(x) @ along)(X), right, 20)
    both = jnp.stack([X, along])
    assert g1(jax.vmap(grad(f))(both), jax.vmap(jax.grad(twin))(both), 4)


def of_a_matrix(w, x):
    ref = new_ref(jnp.zeros(3))

    def body(c, t):
        ref[...] += jnp.sin(c @ w) * t
        return ref[...], None

    c, _ = lax.scan(body, x, RISING)
    return jnp.sum(ref[...] ** 2) + jnp.sum(c)


def of_a_matrix_(w, x):
    a = 0.0
    for t in RISING:
        x = a = a + jnp.sin(x @ w) * t
    return jnp.sum(a**2) + jnp.sum(x)


def test_what_is_asked_of_a_function_is_answered_for_one_with_mutable_arrays():
    w = jnp.outer(X, X)
    value, right = jax.value_and_grad(of_a_matrix_)(w, X)
    assert g1(inspect(of_a_matrix)(w, X).gradients, right, 20)
    assert g1(watch(of_a_matrix, of="products")(w, X)[0], (value, right), 20)
    assert g1(jax.jit(grad(of_a_matrix, checkpoint=checkpoint.within(10**6)))(w, X), right, 20)
    assert check.walk(of_a_matrix)(w, X).ok
    rows = jnp.stack([X, jnp.cos(X)])
    norms = per_example.gradient_norms(of_a_matrix)(w, rows)
    each = jax.vmap(jax.grad(of_a_matrix_), (None, 0))(w, rows)
    assert g1(norms, jnp.linalg.norm(each, axis=(1, 2)), 20)


# --- of the world outside ---


def test_a_count_outside_is_counted_once_and_has_no_part_in_the_gradient():
    count = new_ref(jnp.zeros(()))

    def f(x):
        def body(c, _):
            count[...] += 1
            return c * jnp.sin(x) * (1 + 0 * count[...]), None

        return jnp.sum(lax.scan(body, x, length=3)[0])

    def twin(x):
        return jnp.sum(x * jnp.sin(x) ** 3)

    assert g1(grad(f)(X), jax.grad(twin)(X), 8)
    assert count[...] == 3
    assert g1(jax.jit(grad(jax.jit(f)))(X), jax.grad(twin)(X), 8)
    assert count[...] == 6


@pytest.mark.parametrize("inside", [lambda f: f, jax.jit])
def test_a_rule_of_ones_own_writes_out_what_comes_back(inside):
    """docs.jax.dev, "Autodiff with refs": the cotangent of a value, looked at from outside."""

    @jax.custom_vjp
    def stash(ref, x):
        return x

    def back(ref, ct):
        ref[...] = ct
        return None, ct

    stash.defvjp(lambda ref, x: (x, ref), back)
    held = new_ref(jnp.zeros(3))
    found = grad(inside(lambda x: jnp.sum(jnp.sin(stash(held, x**2)))))(X)
    np.testing.assert_allclose(held[...], jnp.cos(X**2), rtol=1e-6)
    assert g1(found, 2 * X * jnp.cos(X**2), 4)


OUTSIDE = new_ref(jnp.zeros(3))


@jax.custom_vjp
def reading(x):
    return x * (1 + OUTSIDE[...])


reading.defvjp(lambda x: (reading(x), None), lambda _, ct: (3 * ct * (1 + OUTSIDE[...]),))


def test_a_rule_of_ones_own_reads_one_from_outside():
    assert g1(grad(lambda x: jnp.sum(reading(x)))(X), 3 * jnp.ones(3), 1)


@jax.custom_vjp
def given_one(ref, x):
    return x * ref[...]


given_one.defvjp(lambda ref, x: (x * ref[...], None), lambda _, ct: (None, ct))


def condition_reads(x):
    """jax takes it under jit only, where it reads what was there at the start."""
    ref = new_ref(jnp.ones(()))

    def turn(c):
        ref[...] += 10
        return c * 2

    return jnp.sum(x) * lax.while_loop(lambda c: c + ref[...] < 50, turn, 1.0)


REFUSED = {
    "a condition reads what the body writes": (condition_reads, "condition of a 'while' reads"),
    "a differentiated value goes outside": (
        lambda x: jnp.sum(x) + OUTSIDE.__setitem__(..., x),
        r"from outside of the function .*lax\.stop_gradient.*test_graph_mutable",
    ),
    "a rule is given an array of f": (
        lambda x: jnp.sum(given_one(new_ref(x), x)),
        "'custom_vjp_call'.*give it the value",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_sentence(kind):
    f, words = REFUSED[kind]
    for gradient in (grad(f), jax.jit(grad(f))):
        with pytest.raises(UnsupportedPrimitive, match=words):
            gradient(X)


def test_a_frozen_array_is_not_used_again():
    def f(x):
        ref = new_ref(x)
        return jnp.sum(jax.freeze(ref) * ref[...])

    with pytest.raises(ValueError, match="after it was frozen"):
        grad(f)(X)
