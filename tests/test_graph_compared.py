"""What tells which number was chosen, where XLA computes the numbers more than once.

Compiled, x ↦ (x − mean) / √var · g + b is computed in each loop that reads it, and not in each to
the same last bit: a rule that compares such a number with the largest of them then finds none.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from machine_code import as_users_do

from jaxbackprop.checkpoint import ties
from jaxbackprop.checkpoint.ties import array_of_its_own
from jaxbackprop.graph import grad
from jaxbackprop.graph.rules import indexing, windows

AXES = (0, 1, 2)
SEED = 4  # there the wrong versions at the end are wrong by a tenth


def normalised(w, x):
    y = jnp.einsum("bhwc,cd->bhwd", x, w["W"])
    return (y - y.mean(AXES)) * lax.rsqrt(y.var(AXES) + 1e-5) * w["g"] + w["b"]


def pooled(reducer, worst, x, size=(1, 2, 2, 1), strides=(1, 2, 2, 1), **options):
    return lax.reduce_window(x, worst, reducer, size, strides, "SAME", **options)


def largest_of_segments(x):
    rows = x.reshape(-1, 4)
    return jax.ops.segment_max(rows, jnp.arange(len(rows)) % 7, num_segments=7)


CHOOSERS = {
    "largest": lambda x: x.max((1, 2)),
    "smallest": lambda x: x.min(-1),
    "pooled": lambda x: pooled(lax.max, -jnp.inf, x),
    "pooled, overlapping": lambda x: pooled(lax.max, -jnp.inf, x, (1, 3, 3, 1), (1, 1, 2, 1)),
    "pooled in blocks": lambda x: x.reshape(5, 3, 2, 3, 2, 4).max((2, 4)),
    "largest so far": lambda x: lax.cummax(x, 1),
    "smallest so far": lambda x: lax.cummin(x, 2, reverse=True),
    "of segments": largest_of_segments,
    "written": lambda x: x[0].at[jnp.array([0, 0, 3])].max(x[1, :3]),
    "smallest written": lambda x: x[0].at[:, jnp.array([1, 1])].min(x[2, :, :2]),
    "sorted": lambda x: jnp.sort(x, 1) * jnp.arange(4.0),
    "sorted by keys": lambda x: lax.sort((x, x[::-1] * 2), dimension=1, num_keys=1)[1],
    "the top": lambda x: lax.top_k(x, 2)[0],
    "median": lambda x: jnp.median(x, (1, 2)),
    "the larger": lambda x: jnp.maximum(x, x[:, ::-1]),
    "largest norm": lambda x: jnp.linalg.norm(x.reshape(5, -1), jnp.inf, axis=1),
}


def at(choose, seed=SEED):
    """The function, and where."""
    keys = jax.random.split(jax.random.key(seed), 4)
    w = {
        "W": jax.random.normal(keys[0], (2, 4)),
        "g": 1 + 0.1 * jax.random.normal(keys[1], (4,)),
        "b": 0.1 * jax.random.normal(keys[2], (4,)),
    }
    x = jax.random.normal(keys[3], (5, 6, 6, 2))
    return (lambda w, x: jnp.sum(jnp.sin(choose(normalised(w, x))))), w, x


def one_by_one(choose, seed=SEED):
    """jax's gradient, one operation after the other: each number is computed once."""
    f, *args = at(choose, seed)
    with jax.disable_jit():
        return jax.grad(f)(*args)


def error(found, right):
    """Normwise, of all leaves together."""
    size = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    return size(jax.tree.map(jnp.subtract, found, right)) / size(right)


DILATION = (1, 2, 1, 1)
TWINS = {  # where jax.grad takes the second only
    "of devices": (
        lambda x: jax.vmap(lambda y: lax.pmax(y, "b") * y[0], axis_name="b")(x),
        lambda x: x.max(0) * x[:, :1],
    ),
    "pooled, dilated": (
        lambda x: pooled(lax.max, -jnp.inf, x, (1, 3, 1, 1), (1,) * 4, window_dilation=DILATION),
        lambda x: jnp.maximum(x, jnp.maximum(shifted(x, 2), shifted(x, -2))),
    ),
}  # fmt: skip


def shifted(x, by):
    """Two rows up or down, with −∞ where none is."""
    padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0)), constant_values=-jnp.inf)
    return padded[:, 2 + by : 8 + by]


@pytest.mark.parametrize("name", [*CHOOSERS, *TWINS])
def test_the_chosen_number_gets_its_gradient_compiled(name):
    ours, jaxs = TWINS.get(name) or (CHOOSERS[name], CHOOSERS[name])
    f, *args = at(ours)
    assert error(as_users_do(grad(f), *args), one_by_one(jaxs)) < 1e-5


@pytest.mark.parametrize(("name", "rules"), [("pooled", windows), ("of segments", indexing)])
def test_numbers_compared_where_they_are_computed_are_not_equal(name, rules, monkeypatch):
    """A wrong version: what is compared is not put in memory first. (Not each number shows it.)"""
    monkeypatch.setattr(rules, "in_memory", lax.stop_gradient)
    choose, found = CHOOSERS[name], []
    for seed in range(SEED, SEED + 4):
        f, *args = at(choose, seed)
        found.append(error(as_users_do(grad(f), *args), one_by_one(choose, seed)))
    assert max(found) > 1e-3


def in_another_order(x):
    """Compiled by jax 0.12, its last arrays have their axes in another order in memory."""
    held = lambda x: array_of_its_own(x, jnp.abs(x).sum())  # noqa: E731
    h = held(jnp.tanh(x))
    p = held(pooled(lax.max, -jnp.inf, h))
    u = held(jax.image.resize(p, h.shape, "bilinear"))
    return jnp.sin(held(jnp.concatenate([h, u], -1))).sum()


def gradients_in_another_order():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    with jax.disable_jit():
        right = jax.grad(in_another_order)(x)
    return as_users_do(grad(in_another_order), x), right


def test_what_is_put_in_memory_is_read_in_the_order_it_was_written_in():
    assert error(*gradients_in_another_order()) < 1e-5


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="all arrays have one order there")
def test_a_call_alone_does_not_turn_what_it_was_given(monkeypatch):
    """A wrong version. (A new function: jax would find the program of the right one.)"""
    monkeypatch.setattr(ties, "_in_order", ties._by_a_call)
    monkeypatch.setitem(globals(), "in_another_order", lambda x, f=in_another_order: f(x))
    assert error(*gradients_in_another_order()) > 0.1
