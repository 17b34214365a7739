"""Composed programs, looked into: no structure is too much, and the gradients are jax's.

JAXBACKPROP_PROGRAMS=100 takes so many, JAXBACKPROP_SEED=1000 begins at another one.
"""

import os

import jax
import numpy as np
import pytest
from programs import build, program

from jaxbackprop import inspect, watch
from jaxbackprop.graph.inspection.steps import Unknown

COUNT = int(os.environ.get("JAXBACKPROP_PROGRAMS", "12"))
SEED = int(os.environ.get("JAXBACKPROP_SEED", "0"))


def same(found, expected, rtol=1e-3) -> bool:
    """In float32, relative to the largest entry: the order of sums is another one."""
    found, expected = np.asarray(found), np.asarray(expected)
    size = 1 + np.abs(expected.astype(float)).max()
    close = np.allclose(found.astype(float), expected, rtol=rtol, atol=rtol * size, equal_nan=True)
    return found.dtype == expected.dtype and close


@pytest.mark.parametrize("seed", range(SEED, SEED + COUNT))
def test_a_program_is_looked_into_and_its_gradients_are_jaxs(seed):
    each = program(seed)
    try:
        value, gradients = jax.value_and_grad(each.f, (0, 1))(*each.args)
    except Exception as error:
        pytest.skip(f"jax itself refuses it: {error!r}: {each.description}")
    found = inspect(each.f, argnums=(0, 1))(*each.args)
    assert str(found)
    assert all(repr(record) for record in found)
    assert same(found.value, value), each.description
    for g, ĝ in zip(jax.tree.leaves(found.gradients), jax.tree.leaves(gradients), strict=True):
        assert isinstance(g, Unknown) or same(g, ĝ), each.description
    assert found.origin() is None or not np.isfinite([value]).all()


@pytest.mark.parametrize("name", ["jvp_numbers", "vjp_numbers"])
def test_numbers_that_stand_in_a_graph_are_looked_into_and_watched_as_arrays(name):
    each = build(((name, ("sin",)),))
    right = jax.grad(each.f)(*each.args)
    found = inspect(each.f)(*each.args)
    assert same(found.gradients, right)
    (_, gradients), seen = watch(each.f, "everything")(*each.args)
    assert same(gradients, right)
    assert 0.5 in [float(s.value.norm) for s in seen]
