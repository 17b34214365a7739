"""Second derivatives of jax's own cases, in all four nestings of our gradient and jax's."""

import functools

import jax
import numpy as np
from gates import as_float64
from harnesses import (
    NO_GRADIENT,
    NOT_IN_JAX,
    REFUSED,
    SAME,
    WRONG,
    Outcome,
    differentiable,
    draw,
    for_jax,
    inside,
    refuted,
)
from machine_code import QUICK
from nestings import JAX, NESTINGS, OURS, by_differences, pairing

from jaxbackprop.graph import UnsupportedPrimitive, vjp


def judge_twice(harness, nestings=NESTINGS) -> list[Outcome]:
    """One harness's second derivatives, those of Σ Re(c f), in all four nestings: in double
    precision, compiled, and mapped over two points."""
    outcome = functools.partial(Outcome, harness.group_name)
    with jax.enable_x64(True):
        try:
            f, primals = differentiable(harness, double=True)
            rng = np.random.RandomState(0)
            cts = [draw(rng, o) for o in jax.eval_shape(f, *primals)]
            directions = [draw(rng, x) for x in primals]
        except Exception as error:
            return [outcome(harness.fullname, NOT_IN_JAX, str(error)[:90])]
        points = [
            np.stack([x, x + 0.01 * d])
            for x, d in zip(map(np.asarray, primals), map(np.asarray, directions), strict=True)
        ]
        whole = for_jax(harness, f)  # in three nestings jax differentiates as well

        @functools.cache
        def second(nesting):
            def at(*xs):
                found = nesting(lambda xs: pairing(cts, whole(*xs)), list(xs), directions)
                return inside(f, xs, found)

            return jax.jit(jax.vmap(at)).lower(*points).compile(QUICK)(*points)

        return [
            outcome(f"{harness.fullname} {name}", *_twice(harness, second, *pair))
            for name, pair in nestings.items()
        ]


def _twice(harness, second, ours, jaxs) -> tuple[str, str]:
    """The verdict, and why; where ours is not jax's, differences judge."""
    try:
        right = second(jaxs)
    except Exception as error:
        return NOT_IN_JAX, f"{type(error).__name__}: {str(error)[:90]}"
    try:
        found = second(ours)
    except UnsupportedPrimitive as error:
        return REFUSED, str(error)
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {str(error)[:200]}"
    if _near(found, right):
        return SAME, ""
    differences = functools.partial(by_differences, gradient=_first(harness))
    slopes = [second(functools.partial(differences, h=h)) for h in (1e-5, 5e-6)]
    if not _near(*slopes, 1e-4):
        return NO_GRADIENT, "differences tell nothing: there is no second derivative there"
    return (SAME, "jax's is another") if _near(found, slopes[1], 1e-4) else (WRONG, "another value")


def _first(harness):
    """The gradient whose differences judge: jax's, or ours where those of f refute jax's alone."""
    return OURS if refuted(harness, jax.vjp) and not refuted(harness, vjp) else JAX


def _near(found, right, bound=1e-8) -> bool:
    """Where the right one is a number: near it, relative to the whole."""
    pairs = list(zip(as_float64(found), as_float64(right), strict=True))
    keep = [np.isfinite(r) for _, r in pairs]
    off, whole = (
        sum(np.sum(np.abs(part[k]) ** 2) for part, k in zip(parts, keep, strict=True))
        for parts in ([o - r for o, r in pairs], [r for _, r in pairs])
    )
    return bool(off <= bound**2 * whole + 1e-24)
