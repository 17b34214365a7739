"""The order of an epoch: a permutation, drawn evenly, of which any part can be had alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxbackprop import shuffle


def drawn(n, count, places=None):
    """A row for each of `count` keys."""
    places = jnp.arange(n) if places is None else places
    keys = jax.random.split(jax.random.key(7), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: shuffle.permuted(key, places, n)))(keys))


@pytest.mark.parametrize("n", [1, 2, 3, 50, 255, 256, 257, 1437, 60_000, 65_537])
def test_every_number_comes_once(n):
    for row in drawn(n, 3):
        np.testing.assert_array_equal(np.sort(row), np.arange(n))


def test_a_part_is_the_part_of_the_whole():
    key, n = jax.random.key(3), 1437
    whole = shuffle.permuted(key, jnp.arange(n), n)
    places = jnp.array([[5, 1436], [0, 700]])
    np.testing.assert_array_equal(shuffle.permuted(key, places, n), whole[places])


def test_places_among_billions_fit():
    found = shuffle.permuted(jax.random.key(0), jnp.arange(1000) + (2**31 - 1000), 2**31)
    assert found.min() >= 0
    assert len(np.unique(found)) == 1000


def evenly(counts):
    """The chance of counts at least as uneven, were all outcomes equally likely."""
    return stats.chisquare(counts).pvalue


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_all_orders_of_a_few_are_equally_likely(n):
    orders, counts = np.unique(drawn(n, 20_000), axis=0, return_counts=True)
    assert len(orders) == math.factorial(n)
    assert evenly(counts) > 1e-3


@pytest.mark.parametrize("n", [50, 256, 1437])
def test_images_and_distances_of_neighbours_are_spread_evenly(n):
    found = drawn(n, 20_000, jnp.array([0, 1, n // 2, n // 2 + 1, n - 1]))
    for column in found.T:
        assert evenly(np.bincount(column, minlength=n)) > 1e-3
    for a, b in ((0, 1), (2, 3), (0, 4)):
        distances = np.bincount((found[:, a] - found[:, b]) % n, minlength=n)
        assert distances[0] == 0
        assert evenly(distances[1:]) > 1e-3


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_are_noticed(rounds, monkeypatch):
    monkeypatch.setattr(shuffle, "ROUNDS", rounds)
    orders, counts = np.unique(drawn(5, 20_000), axis=0, return_counts=True)
    assert evenly(np.pad(counts, (0, 120 - len(orders)))) < 1e-6


@pytest.mark.parametrize("n", [0, -3, 2**31 + 1])
def test_an_impossible_n_is_refused(n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        shuffle.permuted(jax.random.key(0), jnp.arange(3), n)
