"""The order of an epoch: a random permutation that is computed place by place.

A Feistel network permutes 0 … 4ʰ − 1, whatever its round functions are, since each round can be
undone; numbers outside 0 … n − 1 go through it again until they are inside (J. Black and
P. Rogaway, *Ciphers with arbitrary finite domains*, 2002). It needs no sort: sorting random keys is
a tenth of an epoch of small steps, and gives no part of the order without the whole (R. Mitchell
et al., *Bandwidth-optimal random shuffling for GPUs*, 2022).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from jaxbackprop.refusals import check_key, check_whole

ROUNDS = 8


def permuted(key: PRNGKeyArray, places: Int[Array, "*shape"], n: int) -> Int[Array, "*shape"]:
    """π(places), with π a permutation of 0 … n − 1 that the key draws, for n up to 2³¹.

    Raises ValueError for an n outside 1 … 2³¹.
    """
    check_key(key)
    check_whole("n", n, least=0)
    places = jnp.asarray(places)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise ValueError(f"places are {places.dtype}, expected whole numbers")
    if not 1 <= n <= 2**31:
        raise ValueError(f"n is {n}, expected 1 … 2³¹")
    half = max(4, -(-(n - 1).bit_length() // 2))
    keys = jax.random.bits(key, (ROUNDS,))

    def outside(x):
        return x >= jnp.uint32(n)

    x = jax.lax.while_loop(
        lambda x: jnp.any(outside(x)),
        lambda x: jnp.where(outside(x), _feistel(keys, x, half), x),
        _feistel(keys, places.astype(jnp.uint32), half),
    )
    return x.astype(places.dtype)


def _feistel(keys: UInt32[Array, " rounds"], x: UInt32[Array, "*shape"], half: int) -> Array:
    """A permutation of the numbers of 2 · half bits: each round exchanges the two halves, and
    mixes one with a function of the other."""
    mask = jnp.uint32((1 << half) - 1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Every bit depends on every bit: the finalizer of MurmurHash3 (A. Appleby)."""
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
