"""Composed programs: our value and gradient are jax's, or the program is refused by name.

JAXBACKPROP_PROGRAMS=3000 takes so many, JAXBACKPROP_SEED=1000 begins at another one.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from gates import g1, g3, g4
from jax.extend.core import Literal, jaxpr_as_fun
from machine_code import QUICK, USERS
from nestings import NESTINGS, by_differences, pushed, traced
from programs import SMOOTH, Program, build, program

import jaxbackprop
from jaxbackprop import UnsupportedPrimitive

COUNT = int(os.environ.get("JAXBACKPROP_PROGRAMS", "150"))
SEED = int(os.environ.get("JAXBACKPROP_SEED", "0"))
AT_ONCE = 10  # programs compiled together
CODE = QUICK if COUNT <= 150 else USERS  # a campaign compiles as users do

SAME, REFUSED, NOT_JAX, FAILED = "same", "refused", "jax itself refuses", "FAILED"


class Outcome(NamedTuple):
    verdict: str
    program: Program
    why: str = ""

    def __repr__(self) -> str:
        return f"{self.verdict}: {self.program.description}: {self.why}"


Gradient = Callable[..., Callable]  # as value_and_grad


def outcomes(programs: list[Program], ours: Gradient = jaxbackprop.value_and_grad) -> list[Outcome]:
    """What becomes of each: traced one by one, compiled some at a time."""
    found, pairs = [], []
    for each in programs:
        traced = _traced(each, ours)
        if isinstance(traced, Outcome):
            found.append(traced)
        else:
            pairs.append((each, traced))
    for k in range(0, len(pairs), AT_ONCE):
        some = pairs[k : k + AT_ONCE]
        run = jax.jit(lambda args, some=some: [pair(*a) for (_, pair), a in zip(some, args)])  # noqa: B905
        args = [each.args for each, _ in some]
        results = run.lower(args).compile(CODE)(args)
        found += [_judged(each, *both) for (each, _), both in zip(some, results, strict=True)]
    return found


def _traced(each: Program, ours: Gradient) -> Callable | Outcome:
    """Both gradients as one function, or the end that it came to before it ran."""
    try:
        theirs = _flat_jaxpr(jax.value_and_grad(each.f, (0, 1)), each.args)
    except Exception as error:
        return Outcome(NOT_JAX, each, f"{type(error).__name__}: {error}")
    try:
        own = _flat_jaxpr(ours(each.f, (0, 1)), each.args)
    except UnsupportedPrimitive as error:
        return Outcome(REFUSED if "'" in str(error) else FAILED, each, str(error))
    except Exception as error:
        return Outcome(FAILED, each, f"{type(error).__name__}: {str(error)[:300]}")
    return lambda *args: (theirs(*args), own(*args))


def _flat_jaxpr(function: Callable, args: tuple) -> Callable:
    """The function, traced once and for all."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)

    def run(*args: Any) -> Any:
        out = jaxpr_as_fun(closed)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def _judged(each: Program, theirs: Any, own: Any) -> Outcome:
    """By the gates: equal up to rounding; where sums cancel, as near to the truth as jax's; and
    where jax's compiled gradient is another, equal to its gradient operation by operation.

    (A number that is computed twice is not rounded twice in one way, and jax then finds none that
    equals the least of them: `build((("scan_slices", ("half", "min_norm")),))` on 0.10 and 0.12.)
    """
    depth = len(each.names)
    if _is_finite(theirs) or not _is_finite(own):
        if not g4(own, theirs):
            return Outcome(FAILED, each, f"of another form: {own}, jax {theirs}")
        if not _is_finite(theirs) or g1(own, theirs, depth) or g3(own, theirs, _truth(each)):
            return Outcome(SAME, each)
    right = _one_by_one(each)
    if g4(own, right) and g1(own, right, depth):
        return Outcome(SAME, each, f"jax's compiled one is another: {own}, jax {theirs}")
    return Outcome(FAILED, each, f"wrong: {own}, jax {theirs}, operation by operation {right}")


def _is_finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _truth(each: Program) -> Any:
    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: leaf.astype("float64"), each.args)
        return jax.value_and_grad(each.f, (0, 1))(*args)


def _one_by_one(each: Program) -> Any:
    """(So jax does no scan without steps: there the truth stands in.)"""
    if "scan_empty" in each.names:
        return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), _truth(each), _kinds(each))
    with jax.disable_jit():
        return jax.value_and_grad(each.f, (0, 1))(*each.args)


def _kinds(each: Program) -> Any:
    return jax.eval_shape(jax.value_and_grad(each.f, (0, 1)), *each.args)


def test_composed_programs_have_jaxs_gradients_or_are_refused_by_name():
    found = outcomes([program(SEED + k) for k in range(COUNT)])
    failed = [o for o in found if o.verdict == FAILED]
    count = {v: sum(o.verdict == v for o in found) for v in (SAME, REFUSED, NOT_JAX)}
    told = [o for o in found if o.verdict in (REFUSED, NOT_JAX) or o.why]
    print(f"\n{count}", *told, sep="\n")
    assert not failed, "\n".join(map(repr, failed))
    assert count[SAME] >= 0.95 * len(found)


def doubled(f, argnums):
    """A wrong version: the second use of a value counts no more."""

    def value_and_gradient(*args):
        value, (gx, gw) = jaxbackprop.value_and_grad(f, argnums)(*args)
        return value, (gx, {**gw, "v": 1.001 * gw["v"]})

    return value_and_gradient


def without_rules(f, argnums):
    """A wrong version: a function with a rule of its own is differentiated by its body."""

    def value_and_gradient(*args):
        closed = jax.make_jaxpr(f)(*args)

        def opened(*args):
            return _without_rules(closed, *jax.tree.leaves(args))

        return jax.value_and_grad(opened, argnums)(*args)

    return value_and_gradient


def _without_rules(closed, *args):
    values = dict(zip(closed.jaxpr.invars, args, strict=True))
    values |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]  # noqa: E731
    for e in closed.jaxpr.eqns:
        inputs = [read(v) for v in e.invars]
        inner = e.params.get("call_jaxpr")
        bind = e.primitive.get_bind_params(e.params)
        out = jaxpr_as_fun(inner)(*inputs) if inner else e.primitive.bind(*inputs, **bind)
        several = inner or e.primitive.multiple_results
        values.update(zip(e.outvars, out if several else [out], strict=True))
    return read(closed.jaxpr.outvars[0])


@pytest.mark.parametrize("wrong", [doubled, without_rules])
def test_a_wrong_gradient_would_be_seen(wrong):
    tree = (("vjp_clipped", ("sin", "dot")), "mul")
    assert outcomes([build(tree)])[0].verdict == SAME
    assert outcomes([build(tree)], wrong)[0].verdict == FAILED


def second(each: Program, nestings: dict = NESTINGS) -> list[str]:
    """The nestings whose second derivative H cos x is neither jax's nor that of the function."""
    x, w = each.args
    functions, wrong = {}, []
    f = lambda x: each.f(x, w)  # noqa: E731
    for name, (ours, jaxs) in nestings.items():
        try:
            right = traced(jaxs, f, x, jnp.cos(x))
        except Exception:
            continue  # jax does not take it
        try:
            functions[name] = traced(ours, f, x, jnp.cos(x)), right
        except UnsupportedPrimitive:
            continue
        except Exception as error:
            wrong.append(f"{each.description} {name}: {type(error).__name__}: {str(error)[:200]}")
    run = jax.jit(lambda x: [[g(x) for g in pair] for pair in functions.values()])
    for name, (found, right) in zip(functions, run.lower(x).compile(QUICK)(x), strict=True):
        if not _near(found, right) and not _near(found, _differences(each)):
            wrong.append(f"{each.description} {name}: {found}, jax {right}")
    return wrong


def _near(found: Any, right: Any) -> bool:
    """Second derivatives cancel: the bound is relative to the whole, as for a deep network."""
    return jnp.linalg.norm(found - right) <= 1e-4 * jnp.linalg.norm(right) + 1e-6


def _differences(each: Program) -> Any:
    """In float64: of frexp in a scan jax's own second derivative is another."""
    with jax.enable_x64(True):
        x, w = jax.tree.map(lambda leaf: leaf.astype("float64"), each.args)
        found = by_differences(lambda x: each.f(x, w), x, jnp.cos(x), h=1e-4)
    return found.astype("float32")


def test_second_derivatives_in_all_four_nestings_are_jaxs():
    found = [line for k in range(COUNT // 15) for line in second(program(SEED + k, SMOOTH, 4))]
    assert not found, "\n".join(found)


def test_where_jaxs_second_derivative_is_another_differences_agree_with_ours():
    frexp_in_scan, jaxs = build((("scan", ("frexp", "div")),)), pushed(jax.grad)
    too_much = {"1.1 of it": (lambda *args: 1.1 * jaxs(*args), jaxs)}
    assert second(frexp_in_scan, too_much)
    assert not second(frexp_in_scan)
