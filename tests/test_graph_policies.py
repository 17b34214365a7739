"""A policy of a checkpoint is asked inside of scans, calls and checkpoints, as jax asks it: as many
products are evaluated, and no more bytes are needed."""

import functools

import jax
import jax.numpy as jnp
import pytest
from gates import g1
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from nestings import NESTINGS

from jaxbackprop.graph import grad, partition, saved

POLICIES = jax.checkpoint_policies
N, STEPS = 8, 12
X = jnp.linspace(0.1, 1, N * N).reshape(N, N)
A, B = 0.9 * jnp.eye(N) + 0.01, 0.8 * jnp.eye(N) - 0.01


def layer(c):
    h = checkpoint_name(c @ A, "h")
    return checkpoint_name(jnp.sin(jnp.tanh(h) @ B), "o")


def loop(body, steps=STEPS):
    return lambda x: lax.scan(lambda c, _: (body(c), None), x, None, steps)[0]


def sliced(x):
    """Backwards, with slices, and with outputs of each step; the last of them nobody asks for."""

    def turn(c, row):
        c = checkpoint_name(layer(c) * row, "o")
        return c, (jnp.sin(c * row), jnp.cos(row))

    end, (ys, _) = lax.scan(turn, x, jnp.linspace(0.5, 1, STEPS), reverse=True)
    return end + ys.sum(0)


KINDS = {
    "scan": loop(layer),
    "jit": jax.jit(loop(jax.jit(layer))),
    "scan of scan": loop(loop(layer, 3), STEPS // 3),
    "scan of checkpoint": loop(jax.checkpoint(layer)),
    "checkpoint of scan": jax.checkpoint(loop(layer)),
    "slices": sliced,
}
SAVED = {
    "nothing": None,
    "products": POLICIES.dots_saveable,
    "everything": POLICIES.everything_saveable,
    "a name": POLICIES.save_only_these_names("h"),
    "the last name": POLICIES.save_only_these_names("o"),
    "all but a name": POLICIES.save_anything_except_these_names("h"),
    "offloaded": POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=["o"],
        names_which_can_be_offloaded=["h"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def products(jaxpr, times=1):
    """How many are evaluated, those of a loop once a step."""
    here = sum(times for e in jaxpr.eqns if e.primitive.name == "dot_general")
    inner = (
        (getattr(v, "jaxpr", v), e.params["length"] if e.primitive.name == "scan" else 1)
        for e in jaxpr.eqns
        for v in e.params.values()
        if hasattr(getattr(v, "jaxpr", v), "eqns")
    )
    return here + sum(products(graph, times * steps) for graph, steps in inner)


def checkpointed(kind, policy):
    """A function that was not traced before: what is made of a graph is kept with it."""
    f = jax.checkpoint(lambda x: KINDS[kind](x), policy=SAVED[policy])
    return lambda x: jnp.sum(f(x) ** 2)


def count(transform, kind, policy):
    return products(jax.make_jaxpr(transform(checkpointed(kind, policy)))(X).jaxpr)


@pytest.mark.parametrize("policy", SAVED)
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_products_as_jaxs(kind, policy):
    assert count(grad, kind, policy) == count(jax.grad, kind, policy)


# Of each kind and of each policy one.
COMPILED = [*zip(KINDS, SAVED, strict=False), ("slices", "offloaded"), ("scan", "products")]


@functools.cache
def compiled(transform, kind, policy):
    return jax.jit(transform(checkpointed(kind, policy))).lower(X).compile()


@pytest.mark.parametrize(("kind", "policy"), COMPILED)
def test_no_more_bytes_than_jaxs_and_its_gradient(kind, policy):
    ours, jaxs = (compiled(transform, kind, policy) for transform in (grad, jax.grad))
    assert g1(ours(X), jaxs(X), 4 * STEPS)
    sizes = [each.memory_analysis().temp_size_in_bytes for each in (ours, jaxs)]
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("nesting", NESTINGS)
def test_second_derivatives_pass_what_is_saved(nesting):
    ours, jaxs = NESTINGS[nesting]
    f = checkpointed("slices", "a name")
    found, expected = (jax.jit(lambda x, s=second: s(f, x, jnp.sin(x))) for second in (ours, jaxs))
    assert g1(found(X), expected(X), 8 * STEPS)


# --- wrong versions ---


def test_a_policy_that_is_asked_of_the_scan_alone_is_found(monkeypatch):
    monkeypatch.setattr(partition, "OPENED", ())
    monkeypatch.setattr(saved, "OPENED", ())
    assert count(grad, "scan", "products") == 6 * STEPS
    assert count(jax.grad, "scan", "products") == 4 * STEPS


def test_what_is_saved_of_the_first_step_for_the_last_is_found(monkeypatch):
    """The second time forward, where the first was backward."""

    def ways(equation, jaxpr, inside, again, counts, way):
        first, second = right(equation, jaxpr, inside, again, counts, way)
        turned = len(second.invars) - len(inside.saved)

        def run(inputs):
            rows = [jnp.flip(x, 0) for x in inputs[turned:]]
            return second.run([*inputs[:turned], *rows])

        return first, second._replace(run=run) if inside.saved else second

    right = saved._ways
    monkeypatch.setattr(saved, "_ways", ways)
    wrong = jax.jit(grad(checkpointed("slices", "a name")))(X)
    assert not g1(wrong, compiled(jax.grad, "slices", "a name")(X), 4 * STEPS)
