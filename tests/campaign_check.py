"""Campaign on the gradient check: generated functions, right gradients and planted faults.

A trial is one function: its right gradient has to pass, and one with a fault in it must not; in
every third, a wrong rule is planted inside another function and has to be named by its line.
"""

import math
import pathlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import worker_memory
from campaign_report import Report, control, planted
from programs import Program, build, of_kind, program

from jaxbackprop.check import probing, rules
from jaxbackprop.check.arguments import Moving, matched, moving
from jaxbackprop.check.function import flatten
from jaxbackprop.check.gradients import comparison

SMOOTH = ("smooth", "custom_jvp", "custom_vjp", "collective", "complex", "effects")
KINDS = of_kind(*SMOOTH, "kinked", "random", "stopped", "integers")
# What out-of-bounds indices read is clamped, but jax drops their gradients: no slope of f.
KINDS -= {"while_stopped", "out_of_bounds"}
RULED_EVERY = 3
WHOLE = {"straight_through", "integer_cast"}  # may make an exact 0
AFTER = 10**8  # seeds
ROUNDING = 1e-6  # of gradients summed from numbers of the size of 1, in float32


def scaled(draw, leaf):
    return 1.01 * leaf


def negated(draw, leaf):
    return -leaf


def forgotten(draw, leaf):
    wrong = leaf.copy()
    wrong[draw.randrange(len(leaf))] = 0
    return wrong


def moved(draw, leaf):
    return np.roll(leaf, 1, axis=0)


def nudged(draw, leaf):
    wrong = leaf.copy()
    wrong[draw.randrange(len(leaf))] += 0.03 * np.linalg.norm(leaf)
    return wrong


FAULTS: tuple[Callable, ...] = (scaled, negated, forgotten, moved, nudged)


class Trial(NamedTuple):
    """A right gradient and one with a fault: the fault's name, None where none could be planted."""

    program: Program
    alarm: str
    fault: str | None
    caught: bool


def trial(seed: int, spoil: Callable | None = None) -> Trial:
    """`spoil` takes the place of all faults."""
    each, gradient = differentiable(seed)
    draw, moves = random.Random(seed), moving(each.args, (0, 1))
    slopes = probing.measured(flatten(each.f, moves), moves)
    alarm = _verdict(slopes, moves, gradient)
    leaves, tree = jax.tree.flatten(gradient)
    leaves = [np.asarray(leaf) for leaf in leaves]
    k, fault = draw.randrange(len(leaves)), spoil or draw.choice(FAULTS)
    wrong = fault(draw, leaves[k])
    whole = np.linalg.norm([np.linalg.norm(leaf) for leaf in leaves])
    above = np.linalg.norm(wrong - leaves[k])
    if not above > max(5e-3 * np.linalg.norm(leaves[k]), 1e-3 * whole, ROUNDING):
        return Trial(each, alarm, None, False)
    gradient = jax.tree.unflatten(tree, [*leaves[:k], wrong, *leaves[k + 1 :]])
    return Trial(each, alarm, fault.__name__, bool(_verdict(slopes, moves, gradient)))


def differentiable(seed: int) -> tuple[Program, Any]:
    """A program and jax's gradient of it: another one where jax itself refuses (an FFT in some
    checkpoints), or is wrong (ldexp at 0 itself)."""
    each = program(seed, KINDS, 4)
    if "ldexp" in each.names and each.names & WHOLE:
        return differentiable(seed + AFTER)
    try:
        return each, jax.jit(jax.grad(each.f, (0, 1)))(*each.args)
    except TypeError:
        return differentiable(seed + AFTER)


def _verdict(slopes, moves: Moving, gradient) -> str:
    """What is said where the gradient fails."""
    result = comparison(slopes, matched(moves, gradient, given=False)[1])
    return "" if result.ok else str(result)


def ruled(seed: int, wrong: bool = True) -> tuple[Program, bool, str]:
    """A program with one wrong rule in it, and whether it alone is named, by its line."""
    draw = random.Random(seed)
    kinds = of_kind(*SMOOTH) - {"scan_empty", "while_stopped", "out_of_bounds"}
    rule = ("vjp_clipped" if draw.random() < 0.5 else "jvp_doubled") if wrong else "vjp_plain"
    around = draw.choice(["jit", "scan", "checkpoint", "vmap", "map", "fori", "scan_slices"])
    tree = (*program(seed, kinds, 3).tree, (around, ((rule, ("sin", "dot")),)))
    each = build(tree, seed)
    report = rules(each.f, argnums=(0, 1))(*each.args)
    bad = [rule for rule in report.rules if not rule.ok]
    named = [rule for rule in bad if rule.kind in ("custom_vjp", "custom_jvp")]
    right = len(bad) == len(named) == 1 and named[0].line.startswith("programs.py:")
    return each, right, str(report)


class Found(NamedTuple):
    """What was seen of some trials."""

    alarms: list[str]
    missed: list[str]
    unnamed: list[str]
    planted: int
    rules: int


def trials(seeds: range, every: int = RULED_EVERY) -> Found:
    alarms, missed, unnamed, faults, ruled_ = [], [], [], 0, 0
    for seed in seeds:
        found = trial(seed)
        faults += found.fault is not None
        if found.alarm:
            alarms.append(f"seed {seed}, alarm: {found.program.description}\n{found.alarm}")
        if found.fault and not found.caught:
            missed.append(f"seed {seed}, {found.fault} missed: {found.program.description}")
        if seed % every == 0:
            each, named, report = ruled(seed)
            ruled_ += 1
            if not named:
                unnamed.append(f"seed {seed}, not named: {each.description}\n{report}")
        worker_memory.let_go_if_full()
    return Found(alarms, missed, unnamed, faults, ruled_)


def check(root: pathlib.Path, count: int, seed: int) -> Report:
    """At most one alarm in 1,000; 99 of 100 faults caught, 98 of 100 wrong rules named.

    Of each hundred faults begun one may be missed: where f stands at a jump of its own, its slopes
    there are known to no digits.
    """
    found = trials(range(seed, seed + count))
    failures = [
        *(found.alarms if len(found.alarms) > count // 1000 else []),
        *(found.missed if len(found.missed) > math.ceil(found.planted / 100) else []),
        *(found.unnamed if len(found.unnamed) > found.rules // 50 else []),
        *([f"{found.planted} faults were planted"] if found.planted < count // 4 else []),
    ]
    caught, named = found.planted - len(found.missed), found.rules - len(found.unnamed)
    figures = (
        f"{len(found.alarms)} false alarms, {caught} of {found.planted} faults caught, "
        f"{named} of {found.rules} wrong rules named"
    )
    return Report(failures, figures, control(lambda: _blind(seed)))


def _blind(seed: int) -> list[str]:
    """A check that allows everything, which has to miss faults."""
    with planted(probing, tolerance=lambda flat, dtype: 100.0):
        return trials(range(seed, seed + 4), every=10**9).missed
