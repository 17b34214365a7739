"""Collectives under a named axis of vmap, each against the same exchange written with all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbackprop import grad
from jaxbackprop.graph.rules import RULES

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 3)), jnp.float32)
SHIFT = [(i, (i + 1) % 4) for i in range(4)]

# One row's share, and what all the rows have after it.
CASES = {
    "psum": (lambda x: lax.psum(x, "i"), lambda x: jnp.broadcast_to(x.sum(0), x.shape)),
    "pmean": (lambda x: lax.pmean(x, "i"), lambda x: jnp.broadcast_to(x.mean(0), x.shape)),
    "pmax": (lambda x: lax.pmax(x, "i"), lambda x: jnp.broadcast_to(x.max(0), x.shape)),
    "pmin": (lambda x: lax.pmin(x, "i"), lambda x: jnp.broadcast_to(x.min(0), x.shape)),
    "ppermute": (lambda x: lax.ppermute(x, "i", SHIFT), lambda x: jnp.roll(x, 1, 0)),
    "all_gather": (
        lambda x: lax.all_gather(x, "i", axis=1),
        lambda x: jnp.broadcast_to(jnp.moveaxis(x, 0, 1), (4, 4, 4, 3)),
    ),
    "all_gather, tiled": (
        lambda x: lax.all_gather(x, "i", tiled=True),
        lambda x: jnp.broadcast_to(x.reshape(16, 3), (4, 16, 3)),
    ),
    "psum_scatter": (lambda x: lax.psum_scatter(x, "i"), lambda x: x.sum(0)),
    "all_to_all": (
        lambda x: lax.all_to_all(x, "i", 0, 1),
        lambda x: jnp.einsum("iac->aci", x),
    ),
    "all_to_all, tiled": (
        lambda x: lax.all_to_all(x, "i", 0, 1, tiled=True),
        lambda x: jnp.einsum("iac->aic", x).reshape(4, 1, 12),
    ),
}


def gradients(name):
    """Of Σ sin(k y) over all rows, by the rows together and by each alone."""
    share, whole = CASES[name]

    def energy(y):
        return jnp.sum(jnp.sin(y * jnp.arange(1, y.size + 1).reshape(y.shape)))

    def row(x):
        return energy(share(x**2))

    def rows(x):
        return jnp.sum(jax.vmap(energy)(whole(x**2)))

    return jax.vmap(grad(row), axis_name="i")(X), jax.grad(rows)(X)


@pytest.mark.parametrize("name", CASES)
def test_a_collective_gives_each_row_what_all_rows_together_give_it(name):
    ours, reference = gradients(name)
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", ["one of them", "two of them"])
def test_a_collective_is_differentiated_through_its_vmap(name, rows):
    """From outside it is an operation on an axis that the array has."""
    share, whole = CASES[name]

    def energy(y):
        return jnp.sum(jnp.sin(y * jnp.arange(1, y.size + 1).reshape(y.shape)))

    def each(f):
        return jax.vmap(f) if rows == "two of them" else f

    x = jnp.stack([X, X[::-1] + 1]) if rows == "two of them" else X
    ours = grad(lambda x: jnp.sum(each(lambda x: energy(jax.vmap(share, axis_name="i")(x**2)))(x)))
    theirs = jax.grad(lambda x: jnp.sum(each(lambda x: energy(whole(x**2)))(x)))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_largest_over_two_axes_at_once():
    share = lambda x: lax.pmax(x, ("i", "j"))  # noqa: E731
    f = lambda x: jnp.sum(jax.vmap(jax.vmap(share, axis_name="j"), axis_name="i")(x) ** 2)  # noqa: E731
    right = jax.grad(lambda x: jnp.sum(jnp.broadcast_to(x.max((0, 1)), x.shape) ** 2))(X)
    np.testing.assert_allclose(grad(f)(X), right, rtol=1e-5)


def unreduced(cts, outs, x, **params):
    return (lambda: cts[0],)


def forward(cts, outs, x, *, axis_name, perm):
    return (lambda: lax.ppermute(cts[0], axis_name, perm),)


@pytest.mark.parametrize(
    ("name", "wrong"), [("psum", unreduced), ("pmax", unreduced), ("ppermute", forward)]
)
def test_a_wrong_rule_is_rejected(name, wrong, monkeypatch):
    monkeypatch.setitem(RULES, name, wrong)
    ours, reference = gradients(name)
    assert not np.allclose(ours, reference, rtol=1e-2, atol=1e-2)
