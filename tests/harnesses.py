"""The cases that the jax wheel ships for its own primitives, and how our gradients fare on them."""

import functools
import warnings
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gates import as_float64, g1, g3, g4

from jaxbackprop.graph import UnsupportedPrimitive, vjp

SAME, REFUSED, WRONG, NOT_IN_JAX, NO_GRADIENT = "same", "refused", "wrong", "not in jax", "none"


class Outcome(NamedTuple):
    primitive: str
    case: str
    verdict: str
    why: str = ""


@functools.cache
def harnesses():
    """The float32 and float64 harnesses that run on this device, in the wheel's own order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax._src.internal_test_util import test_harnesses
    wanted = (np.float32, np.float64)
    return [
        h for h in test_harnesses.all_harnesses if np.dtype(h.dtype) in wanted and h.filter("cpu")
    ]


def sample(each: int):
    """At most `each` cases a primitive, spread over its list."""
    by_primitive = {}
    for harness in harnesses():
        by_primitive.setdefault(harness.group_name, []).append(harness)
    return [
        group[i]
        for group in by_primitive.values()
        for i in sorted(set(np.linspace(0, len(group) - 1, min(each, len(group))).astype(int)))
    ]


def is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def differentiable(harness, dtype=None):
    """(f, primals): the harness as a function of its real inputs to the list of its real outputs.

    dtype: cast the inputs to it.
    """
    rng = np.random.RandomState(zlib.crc32(harness.fullname.encode()))
    leaves, tree = jax.tree.flatten(harness.dyn_args_maker(rng))
    chosen = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def f(*primals):
        full = list(leaves)
        for i, primal in zip(chosen, primals, strict=True):
            full[i] = primal
        out = harness.dyn_fun(*jax.tree.unflatten(tree, full))
        return [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

    primals = [jnp.asarray(leaves[i], dtype or jnp.result_type(leaves[i])) for i in chosen]
    return f, primals


def gradients(transform, f, primals, seed=0):
    """Cotangents of the primals under jax.vjp or ours, for cotangents drawn at random."""
    out, pullback = transform(f, *primals)
    rng = np.random.RandomState(seed)
    return pullback([jnp.asarray(rng.uniform(-1, 1, o.shape), o.dtype) for o in out])


def inside(f, primals, gradients):
    """The gradients, NaN where an elementwise f is: outside its domain there is none."""
    outs = f(*primals)
    if len(outs) != 1 or any(primal.shape != outs[0].shape for primal in primals):
        return gradients
    return tuple(jnp.where(jnp.isnan(outs[0]), jnp.nan, g) for g in gradients)


def agree(ours, reference, truth) -> bool:
    """G4, and G1 on the finite numbers or else G3. truth: a function that gives it in float64."""
    if not g4(ours, reference):
        return False
    pairs = list(zip(as_float64(ours), as_float64(reference), strict=True))
    if not all(np.array_equal(o[np.isinf(r)], r[np.isinf(r)]) for o, r in pairs):
        return False
    keep = [np.isfinite(r) for _, r in pairs]

    def finite(tree):
        return [np.asarray(leaf)[k] for leaf, k in zip(jax.tree.leaves(tree), keep, strict=True)]

    if g1(finite(ours), finite(reference), depth=3):
        return True
    exact = truth()
    if exact is None:
        return False
    pairs = zip(as_float64(finite(reference)), as_float64(finite(exact)), strict=True)
    # A reference that is itself far from the truth would let anything pass.
    if any(np.linalg.norm(r - e) > 1e-3 * np.linalg.norm(e) for r, e in pairs):
        return False
    return g3(finite(ours), finite(reference), finite(exact))


def judge(harness, transform=vjp) -> Outcome:
    """One harness under our vjp (or another put in its place) and under jax.vjp."""
    outcome = functools.partial(Outcome, harness.group_name, harness.fullname)
    try:
        f, primals = differentiable(harness)
        shapes = jax.eval_shape(f, *primals)
        if not primals or not shapes:
            return outcome(NO_GRADIENT)
        reference = inside(f, primals, gradients(jax.vjp, f, primals))
    except Exception as error:  # whatever jax cannot trace is not a case
        return outcome(NOT_IN_JAX, f"{type(error).__name__}: {str(error)[:90]}")
    try:
        ours = inside(f, primals, gradients(transform, f, primals))
    except UnsupportedPrimitive as error:
        return outcome(REFUSED, str(error))
    except Exception as error:
        return outcome(WRONG, f"{type(error).__name__}: {str(error)[:200]}")

    def truth():
        try:
            with jax.enable_x64(True):
                f64, primals64 = differentiable(harness, jnp.float64)
                return inside(f64, primals64, gradients(jax.vjp, f64, primals64))
        except Exception:
            return None

    return outcome(SAME) if agree(ours, reference, truth) else outcome(WRONG, "another value")


def report(outcomes) -> str:
    """Supported / refused / not in jax, primitive by primitive."""
    lines = [f"{'primitive':30}{'same':>6}{'refused':>9}{'wrong':>7}{'not in jax':>12}{'none':>6}"]
    for name in sorted({o.primitive for o in outcomes}):
        counts = [
            sum(o.primitive == name and o.verdict == verdict for o in outcomes)
            for verdict in (SAME, REFUSED, WRONG, NOT_IN_JAX, NO_GRADIENT)
        ]
        lines.append("{:30}{:6}{:9}{:7}{:12}{:6}".format(name, *counts))
    return "\n".join(lines)
