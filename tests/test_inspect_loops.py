"""A long loop in a jitted function is run by one compiled program, and told as if step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import inspect
from jaxbackprop.graph.inspection import filling, loops
from jaxbackprop.graph.inspection.steps import Unknown

STEPS = 5
XS = jnp.linspace(0.2, 0.9, 3 * STEPS).reshape(STEPS, 3)
W = jnp.array([[0.5, -0.3, 0.2], [0.1, 0.4, -0.6], [-0.2, 0.7, 0.3]])


def recurrent(W, xs):
    """A carry that is also stacked, one that counts, constants, slices, and rules of jax's own."""

    def step(carry, x):
        h, n = carry
        h = jax.nn.softplus(jax.nn.relu(W @ h + x) - n / 9)
        return (h, n + 1), (h, jnp.sin(x))

    (h, _), (hs, ys) = jax.lax.scan(step, (jnp.ones(3), 0), xs)
    return (hs * ys).sum() + h[0]


def backwards(W, xs):
    """From the last step to the first; nothing is asked of the last carry."""
    _, hs = jax.lax.scan(lambda h, x: (jnp.tanh(W @ h) * x, h[0]), jnp.ones(3), xs, reverse=True)
    return (hs**2).sum()


def swapped(W, xs):
    """Two carries that change places: what is asked of them changes from step to step."""

    def step(carry, x):
        a, b = carry
        return (b, a * x), None

    (a, _), _ = jax.lax.scan(step, (W[0], W[1] * 2), xs)
    return a.sum()


@jax.custom_vjp
def halved(x):
    return x * 2


halved.defvjp(lambda x: (x * 2, x), lambda x, ct: (ct * jnp.cos(x),))


def with_a_rule(W, xs):
    """A rule of one's own, random keys, and a carry that is handed through."""

    def step(carry, x):
        h, key, same = carry
        key, used = jax.random.split(key)
        h = halved(h) * x + same * jax.random.uniform(used, (3,))
        return (h / jnp.abs(h).max(), key, same), None

    (h, _, same), _ = jax.lax.scan(step, (W[0], jax.random.key(0), W[1]), xs)
    return (h * same).sum()


def bad_forward(W, xs):
    return jax.lax.scan(lambda h, x: (h + jnp.log(x - 0.55) * W[0], None), W[1], xs)[0].sum()


def bad_backward(W, xs):
    """The root of 0 in one step."""
    return jax.lax.scan(lambda h, x: (h + jnp.sqrt((x - xs[2]) ** 2), x * W), W[1], xs)[0].sum()


def without_a_rule(W, xs):
    """Unknown from above: an operation behind the loop has no rule."""
    h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(W @ h) + x, None), jnp.ones(3), xs)
    kind = jax.ShapeDtypeStruct((3,), jnp.float32)
    return jax.pure_callback(lambda h: np.asarray(h) * 2, kind, h).sum() + W[0, 0]


COMPILED = recurrent, backwards, swapped, with_a_rule, bad_forward, bad_backward, without_a_rule


def inside_out(W, xs):
    """A loop in each step, and a branch: no template."""

    def step(h, x):
        h = jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(W @ h) + i, h)
        return jax.lax.cond(x[0] > 0.5, jnp.sin, jnp.cos, h), None

    return jax.lax.scan(step, jnp.ones(3), xs)[0].sum()


def looked_into(f, long, monkeypatch):
    monkeypatch.setattr(loops, "LONG", long)
    return inspect(jax.jit(f), argnums=(0, 1))(W, XS)


def same(found, expected) -> bool:
    """Numbers but for rounding, and all else exactly."""
    if found is None or isinstance(found, Unknown):
        return type(found) is type(expected)
    if isinstance(found, tuple):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(same(a, b) for a, b in pairs)
    if not isinstance(found, np.ndarray):
        return found == expected
    alike = (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return alike and np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


TOLD = ("number", "operation", "line", "stack", "shape", "dtype", "steps", "value", "gradient")
TOLD += ("paths", "names", "unknown", "local_gradients")


def same_reports(ours, theirs) -> bool:
    told = [tuple(getattr(r, name) for name in TOLD) for r in ours.records]
    expected = [tuple(getattr(r, name) for name in TOLD) for r in theirs.records]
    origins = [getattr(i.origin(), "__dict__", {}) | {"repair": None} for i in (ours, theirs)]
    first, second = (tuple(sorted(o.items(), key=lambda item: item[0])) for o in origins)
    return same(tuple(told), tuple(expected)) and same(first, second)


@pytest.fixture
def templates(monkeypatch) -> list:
    """Those that loops were filled from."""
    found = []

    class Seen(filling.Filled):
        def __init__(self, form, template, *rest):
            found.append(template)
            super().__init__(form, template, *rest)

    monkeypatch.setattr(loops, "Filled", Seen)
    return found


@pytest.mark.parametrize("f", [*COMPILED, inside_out], ids=lambda f: f.__name__)
def test_a_loop_at_once_is_told_as_step_by_step(f, templates, monkeypatch):
    at_once = looked_into(f, STEPS, monkeypatch)
    assert bool(templates) == (f in COMPILED)
    count = len(templates)
    assert same_reports(at_once, looked_into(f, STEPS + 1, monkeypatch))
    assert len(templates) == count


def test_the_second_call_compiles_nothing(templates, monkeypatch):
    monkeypatch.setattr(loops, "LONG", STEPS)
    jitted = jax.jit(lambda W, xs: recurrent(W, 2 * xs))
    for _ in range(2):
        inspect(jitted)(W, XS)
    first, second = templates
    assert first is second
    assert first.ahead._cache_size() == 1


def test_the_comparison_sees_the_slices_of_another_step(monkeypatch):
    expected = looked_into(backwards, STEPS + 1, monkeypatch)
    monkeypatch.setattr(filling, "_numbers", lambda x: np.roll(np.asarray(x), 1, axis=0))
    assert not same_reports(looked_into(backwards, 2, monkeypatch), expected)
