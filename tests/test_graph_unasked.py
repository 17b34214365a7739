"""Outputs that nobody asks the gradient of, and outputs that do not follow what is differentiated.

jax forms no zeros for them: where a slope is infinite they would become NaN, and where there is no
way back, as of a `while`, they would be refused.
"""

import jax
import jax.numpy as jnp
import pytest
from gates import g1
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxbackprop import UnsupportedPrimitive, grad
from jaxbackprop.graph.walk import FOLLOWS, STRUCTURE

X, Y = jnp.array([0.7, 0.3, -0.2]), jnp.arange(3.0)


def looped(x, y):
    """A loop of unknown length that carries two things, neither of which reads the other."""
    go, turn = lambda c: c[2] < 3, lambda c: (jnp.sin(c[0]), jnp.cos(c[1]), c[2] + 1)
    return lax.while_loop(go, turn, (x, y, 0))[:2]


def turns(x):
    """How many turns it takes: an integer."""
    go, turn = lambda c: c[0].sum() < 5, lambda c: (c[0] * 1.5 + 1, c[1] + 1)
    return lax.while_loop(go, turn, (x, 0))[1]


# x ↦ (what is used, what is not).
SLOPES = {
    "no way back": lambda x: (jnp.sin(x), looped(x, x)[0]),
    "an infinite slope": lambda x: (jnp.sin(x), jnp.sqrt(x - x)),
}


def scanned(f, x):
    return lax.scan(lambda c, _: f(c), x, None, length=2)


def carried(f, x):
    return lax.scan(lambda c, _: ((f(c[0])[0], f(c[0])[1] + c[1]), None), (x, x), None, length=2)[0]


def behind(f, x):
    """What is not used is carried, and the slices are."""
    _, ys = lax.scan(lambda c, _: ((jnp.sin(c[0]), f(c[1])[1]), c[0]), (x, x), None, length=2)
    return ys.sum(0), None


def policy(f):
    return jax.checkpoint(f, policy=jax.checkpoint_policies.everything_saveable)


def sharded(f):
    along, mesh = PartitionSpec("i"), jax.make_mesh((1,), ("i",), (AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=along, out_specs=along, check_vma=False))


STRUCTURES = {
    "jit": lambda f, x: jax.jit(f)(x),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "checkpoint with a policy": lambda f, x: policy(f)(x),
    "cond": lambda f, x: lax.cond(x[0] > 0, f, lambda x: (x, x), x),
    "switch": lambda f, x: lax.switch(1 + turns(x) % 1, [lambda x: (x, x), f, f], x),
    "slices of a scan": scanned,
    "the carry of a scan": carried,
    "the carry beside the slices": behind,
    "a scan in a scan": lambda f, x: scanned(lambda c: scanned(f, c), x),
    "a scan in a checkpoint": lambda f, x: jax.checkpoint(lambda x: scanned(f, x))(x),
    "a checkpoint in a scan": lambda f, x: scanned(jax.checkpoint(f), x),
    "a scan in a jit": lambda f, x: jax.jit(lambda x: scanned(f, x))(x),
    "vmap": lambda f, x: jax.vmap(f)(jnp.stack([x, 2 * x])),
    "shard_map": lambda f, x: sharded(f)(x),
}

# Outside of jit what holds a graph is compiled by itself: these are, in one way each.
EAGER = ("jit", "checkpoint with a policy", "cond", "slices of a scan", "shard_map")


def agrees(f, ours=grad, eager=False):
    right, found = jax.jit(lambda x: (jax.grad(f)(x), ours(f)(x)))(X)
    assert jnp.isfinite(right).all()
    return g1(found, right, depth=5) and (not eager or g1(ours(f)(X), right, depth=5))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("slope", ["no way back", "an infinite slope"])
def test_what_nobody_asks_for_changes_nothing(structure, slope):
    if structure == "shard_map" and slope == "no way back":
        pytest.skip("jax itself has no loop of unknown length on what a shard_map divides")
    eager = slope == "an infinite slope" and structure in EAGER
    assert agrees(lambda x: STRUCTURES[structure](SLOPES[slope], x)[0].sum(), eager=eager)


@pytest.mark.parametrize("structure", ["cond", "slices of a scan"])
def test_zeros_that_nobody_asks_for_would_be_seen(structure):
    """A wrong version: the gradient is that of used + 0 · unused."""

    def filled(f):
        def both(x):
            used, unused = STRUCTURES[structure](SLOPES["an infinite slope"], x)
            return used.sum() + 0 * unused.sum()

        return grad(both)

    assert not agrees(
        lambda x: STRUCTURES[structure](SLOPES["an infinite slope"], x)[0].sum(), filled
    )


@pytest.mark.parametrize(
    "structure", sorted({*STRUCTURES} - {"shard_map", "the carry beside the slices"})
)
def test_what_is_asked_for_and_has_no_way_back_is_refused(structure):
    def unused(x):
        return jax.tree.leaves(STRUCTURES[structure](SLOPES["no way back"], x))[-1].sum()

    with pytest.raises(UnsupportedPrimitive, match="'while'"):
        jax.eval_shape(grad(unused), X)


def root(x):
    """The loop is in the search, of which a custom_root has no need on the way back."""
    return lax.custom_root(
        lambda r: r**3 - x[0],
        1.0,
        lambda g, r: lax.while_loop(
            lambda r: jnp.abs(g(r)) > 1e-4, lambda r: r - g(r) / (3 * r**2), r
        ),
        lambda g, y: y / g(1.0),
    )


BESIDE = {
    "another output": lambda x: looped(x, Y)[1] * x,
    "in jit": lambda x: jax.jit(looped)(x, Y)[1] * x,
    "in checkpoint": lambda x: jax.checkpoint(looped)(x, Y)[1] * x,
    "in a scan": lambda x: lax.scan(lambda c, y: (c * looped(c, y)[1], None), x, jnp.ones((3, 3)))[
        0
    ],
    "carried on": lambda x: lax.scan(
        lambda c, _: ((c[0] * (y := looped(*c)[1]), y), None), (x, Y), None, length=2
    )[0][0],
    "in cond": lambda x: x * lax.cond(x[0] > 0, looped, lambda x, y: (x, y), x, Y)[1],
    "in a while": lambda x: x * lax.fori_loop(0, turns(x), lambda _, c: looped(*c), (x, Y))[1],
    "in vmap": lambda x: jax.vmap(lambda r: r * looped(r, 2.0)[1])(x),
    "in a rule of its own": lambda x: ruled(x),
    "tangents": lambda x: jnp.multiply(*jax.jvp(lambda y: looped(x, y)[1], (Y,), (Y,))) * x,
    "an index": lambda x: x[turns(x) % 3] + x,
    "an index in a scan": lambda x: scanned(lambda c: (c * turns(c) / 2, (turns(c), c)), x)[1][1],
    "an index in a checkpoint": lambda x: jax.checkpoint(lambda x: x * turns(x))(x),
    "a step function": lambda x: jax.jit(lambda x: jnp.floor(looped(x, x)[0]))(x) * x,
    "stopped before": lambda x: x * looped(*lax.stop_gradient((x, x)))[0],
    "stopped behind": lambda x: x * lax.stop_gradient(looped(x, x)[0]),
    "stopped in a scan": lambda x: scanned(
        lambda c: (c * lax.stop_gradient(looped(c, c)[0]), 0), x
    )[0],
    "a static number of turns": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + i, x),
    "a root": root,
    "what a sort takes along": lambda x: lax.sort((x, jnp.sqrt(x - x)), num_keys=1)[0] * Y,
}


@jax.custom_jvp
def ruled(x):
    return looped(x, x)[0]


ruled.defjvp(lambda p, t: (ruled(*p), t[0] * looped(p[0], p[0])[0]))


@pytest.mark.parametrize("name", BESIDE)
def test_a_loop_that_the_gradient_passes_by_is_taken(name):
    assert agrees(lambda x: BESIDE[name](x).sum())


def test_slices_that_nobody_asks_for_cost_no_second_loop():
    """What the way back of all cotangents keeps is enough for that of some."""

    def loss(x):
        return lax.scan(lambda c, w: (jnp.tanh(c * w), jnp.exp(c * w)), x, jnp.ones((5, 3)))[
            0
        ].sum()

    assert str(jax.make_jaxpr(grad(loss))(X)).count(" scan[") == 2


def test_every_operation_that_holds_a_graph_says_what_follows_or_is_all_or_nothing():
    whole = {"custom_jvp_call", "custom_vjp_call", "custom_lin", "linear_call", "foreign"}
    whole |= {"custom_linear_solve", "call_hi_primitive", "reduce", "reduce_window"}
    assert set(STRUCTURE) - set(FOLLOWS) == whole
