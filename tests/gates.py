"""When two gradients are called equal.

Bit equality is no usable promise: sums in another order differ by rounding, and a component that
is itself a difference of large terms can differ by any number of units in its last place.

G1 normwise, each leaf: ‖g − ĝ‖ ≤ 8 eps (L + 1) ‖ĝ‖, and an exact zero for a zero reference.
G2 componentwise: |g − ĝ| ≤ 4 eps √k B, with B the backward pass run on absolute values.
G3 truth: the error against float64 is at most twice that of jax.grad.
G4 form: tree structure, shapes, dtypes and the places of NaN are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop import Layer, forward


def eps(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def as_float64(tree):
    """The leaves in double precision, complex ones as complex numbers."""
    leaves = map(np.asarray, jax.tree.leaves(tree))
    return [leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64) for leaf in leaves]


def g1(candidate, reference, depth: int, dtype=None) -> bool:
    """Normwise, leaf by leaf. dtype: the precision to hold them to, by default their own."""
    dtype = dtype or jax.tree.leaves(reference)[0].dtype
    bound = 8 * eps(dtype) * (depth + 1)
    return all(
        np.linalg.norm(c - r) <= bound * np.linalg.norm(r)
        for c, r in zip(as_float64(candidate), as_float64(reference), strict=True)
    )


def g2(candidate, reference, bound, terms: int) -> bool:
    """Componentwise. bound: B, of the same structure; terms: batch size + sum of widths."""
    dtype = jax.tree.leaves(reference)[0].dtype
    return all(
        np.all(np.abs(c - r) <= 4 * eps(dtype) * terms**0.5 * b)
        for c, r, b in zip(
            as_float64(candidate), as_float64(reference), as_float64(bound), strict=True
        )
    )


def absolute_pass(network, params, x, y):
    """B of gate G2: the backward pass on absolute values, every sum without cancellation."""
    trace = forward(network, params, x)
    a = [abs(np.asarray(a, np.float64)) for a in trace.activations]

    def slope(l):
        own = network.sigma(l).derivative(trace.zs[l - 1], trace.activations[l])
        return abs(np.asarray(own, np.float64))

    delta = a[-1] + abs(np.asarray(y, np.float64))
    if network.cost.error is None:
        delta *= slope(network.depth)
    bounds = []
    for l in reversed(range(len(params))):
        mean = delta @ a[l].T / x.shape[1], delta.mean(1, keepdims=True)
        bounds.append(Layer(*mean))
        if l:
            delta = (abs(np.asarray(params[l].W, np.float64)).T @ delta) * slope(l)
    return tuple(reversed(bounds))


def g3(candidate, reference, truth) -> bool:
    """All leaves together no further from the truth than twice the reference, or than rounding."""
    dtype = jax.tree.leaves(candidate)[0].dtype
    c, r, t = (
        np.concatenate([leaf.ravel() for leaf in as_float64(tree)])
        for tree in (candidate, reference, truth)
    )
    rounding = eps(dtype) * np.linalg.norm(t)
    return bool(np.linalg.norm(c - t) <= 2 * np.linalg.norm(r - t) + rounding)


def g4(candidate, reference) -> bool:
    """The same form, NaN for NaN."""
    return jax.tree.structure(candidate) == jax.tree.structure(reference) and all(
        c.shape == r.shape
        and c.dtype == r.dtype
        and np.array_equal(*(np.isnan(leaf) for leaf in as_float64((c, r))))
        for c, r in zip(jax.tree.leaves(candidate), jax.tree.leaves(reference), strict=True)
    )
