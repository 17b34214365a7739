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
    """The floating and complex harnesses that run on this device, in the wheel's own order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax._src.internal_test_util import test_harnesses
    return [
        h
        for h in test_harnesses.all_harnesses
        if jnp.issubdtype(h.dtype, jnp.inexact) and h.filter("cpu")
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


def is_inexact(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def doubled(dtype):
    """float64 or complex128: the precision in which the truth is computed."""
    return jnp.promote_types(dtype, jnp.float64)


def differentiable(harness, double=False):
    """(f, primals): the harness as a function of its inputs, integers apart, to the list of its
    outputs, integers apart.

    double: the inputs in double precision.
    """
    rng = np.random.RandomState(zlib.crc32(harness.fullname.encode()))
    leaves, tree = jax.tree.flatten(harness.dyn_args_maker(rng))
    chosen = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

    def f(*primals):
        full = list(leaves)
        for i, primal in zip(chosen, primals, strict=True):
            full[i] = primal
        out = harness.dyn_fun(*jax.tree.unflatten(tree, full))
        return [leaf for leaf in jax.tree.leaves(out) if is_inexact(leaf)]

    primals = [jnp.asarray(leaves[i]) for i in chosen]
    if double:
        primals = [x.astype(doubled(x.dtype)) for x in primals]
    return f, primals


def for_jax(harness, f):
    """f in a form that jax.vjp differentiates as it is.

    It evaluates eigh at ½(A + Aᴴ), and these harnesses give it a triangle, which means another
    matrix: it gets that one whole.
    """
    if harness.group_name != "eigh":
        return f

    lower = harness.params["lower"]

    def whole(x):
        part, rest = (jnp.tril, -1) if lower else (jnp.triu, 1)
        mirrored = part(x, rest).swapaxes(-1, -2).conj()
        diagonal = jnp.real(jnp.eye(x.shape[-1], dtype=x.dtype) * x).astype(x.dtype)
        return list(jax.lax.linalg.eigh(part(x, rest) + mirrored + diagonal, lower=lower))

    return whole


def gradients(transform, f, primals, seed=0):
    """Cotangents of the primals under jax.vjp or ours, for cotangents drawn at random."""
    out, pullback = transform(f, *primals)
    rng = np.random.RandomState(seed)
    return pullback([draw(rng, o) for o in out])


def draw(rng, like):
    """Numbers of the shape and dtype of another array, from the square [−1, 1] ± i [−1, 1]."""
    numbers = rng.uniform(-1, 1, like.shape)
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        numbers = numbers + 1j * rng.uniform(-1, 1, like.shape)
    return jnp.asarray(numbers, like.dtype)


def inside(f, primals, gradients):
    """The gradients, NaN where an elementwise f is: outside its domain there is none."""
    outs = f(*primals)
    if len(outs) != 1 or any(primal.shape != outs[0].shape for primal in primals):
        return gradients
    return tuple(jnp.where(jnp.isnan(outs[0]), jnp.nan, g) for g in gradients)


def of_jax(harness, f, primals):
    """jax.vjp's gradients, in one program: ours are those of an eager call."""
    return jax.jit(functools.partial(of_jax_eagerly, harness, f))(*primals)


def of_jax_eagerly(harness, f, *primals):
    return inside(f, primals, gradients(jax.vjp, for_jax(harness, f), primals))


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
    """One harness under our vjp (or another put in its place) and under jax.vjp.

    Where they differ, it is also the same if differences refute jax's and not ours: jax 0.10 has
    the other sign of acosh′ left of the imaginary axis, and takes a complex sign for flat.
    """
    outcome = functools.partial(Outcome, harness.group_name, harness.fullname)
    try:
        f, primals = differentiable(harness)
        shapes = jax.eval_shape(f, *primals)
        if not primals or not shapes:
            return outcome(NO_GRADIENT)
        reference = of_jax(harness, f, primals)
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
                f64, primals64 = differentiable(harness, double=True)
                return of_jax(harness, f64, primals64)
        except Exception:
            return None

    if agree(ours, reference, truth):
        return outcome(SAME)
    if agree(ours, of_jax_eagerly(harness, f, *primals), truth):
        return outcome(SAME, "jax's program chooses otherwise among equal numbers")
    if refuted(harness, jax.vjp) and not refuted(harness, transform):
        return outcome(SAME, "jax's gradient is not that of the function")
    return outcome(WRONG, "another value")


def refuted(harness, transform) -> bool:
    """Do central differences in double precision say that these are not f's gradients?

    Two steps, h and h/2, must agree on the slope along a random direction; where they do not, they
    refute nothing.
    """
    with jax.enable_x64(True):
        f, primals = differentiable(harness, double=True)
        _, pullback = transform(f, *primals)
        rng = np.random.RandomState(0)
        outs = f(*primals)
        cts = [draw(rng, o) for o in outs]
        directions = [draw(rng, x) for x in primals]

        def along(t):
            moved = f(*(x + t * d for x, d in zip(primals, directions, strict=True)))
            return _pairing(cts, moved)

        slopes = [(along(h) - along(-h)) / (2 * h) for h in (1e-5, 5e-6)]
        if not np.isclose(*slopes, rtol=1e-5):
            return False
        return not np.isclose(_pairing(pullback(cts), directions), slopes[1], rtol=1e-4)


def _pairing(cts, values):
    """Σ Re(c z)."""
    return sum(
        float(np.sum(np.real(np.asarray(c) * np.asarray(z))))
        for c, z in zip(cts, values, strict=True)
    )


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
