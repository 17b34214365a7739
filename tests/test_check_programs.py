"""The gradient check on generated functions: right gradients pass, planted faults are caught.

JAXBACKPROP_CHECKED=2000 takes so many, JAXBACKPROP_SEED=1000 begins at another one.
"""

import os
import random
from typing import NamedTuple

import jax
import numpy as np
from programs import Program, build, of_kind, program

from jaxbackprop import check
from jaxbackprop.check import check_gradients

COUNT = int(os.environ.get("JAXBACKPROP_CHECKED", "16"))
SEED = int(os.environ.get("JAXBACKPROP_SEED", "0"))
SMOOTH = ("smooth", "custom_jvp", "custom_vjp", "collective", "complex", "effects")
KINDS = of_kind(*SMOOTH, "kinked", "random", "stopped", "integers")
# What out-of-bounds indices read is clamped, but jax drops their gradients: no slope of f.
KINDS -= {"while_stopped", "out_of_bounds"}


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


FAULTS = (scaled, negated, forgotten, moved, nudged)


class Trial(NamedTuple):
    """A right gradient and one with a fault: the fault's name, None where none could be planted."""

    program: Program
    right: str
    fault: str | None
    caught: bool


def trial(seed: int) -> Trial:
    each, draw = program(seed, KINDS, 4), random.Random(seed)
    right = jax.grad(each.f, (0, 1))(*each.args)
    result = check_gradients(each.f, *each.args, gradient=right, argnums=(0, 1))
    leaves, tree = jax.tree.flatten(right)
    leaves = [np.asarray(leaf) for leaf in leaves]
    k, fault = draw.randrange(len(leaves)), draw.choice(FAULTS)
    wrong = fault(draw, leaves[k])
    whole = np.linalg.norm([np.linalg.norm(leaf) for leaf in leaves])
    alarm = "" if result.ok else str(result)
    above = np.linalg.norm(wrong - leaves[k])
    if not above > max(5e-3 * np.linalg.norm(leaves[k]), 1e-3 * whole):
        return Trial(each, alarm, None, False)
    gradient = jax.tree.unflatten(tree, [*leaves[:k], wrong, *leaves[k + 1 :]])
    again = check_gradients(each.f, *each.args, gradient=gradient, argnums=(0, 1))
    return Trial(each, alarm, fault.__name__, not again.ok)


def test_right_gradients_of_generated_functions_pass_and_faults_are_caught():
    trials = [trial(SEED + k) for k in range(COUNT)]
    alarms = [f"{t.program.description}\n{t.right}" for t in trials if t.right]
    planted = [t for t in trials if t.fault]
    missed = [f"{t.fault}: {t.program.description}" for t in planted if not t.caught]
    print(f"\n{COUNT} functions, {len(alarms)} alarms; {len(planted)} faults, {len(missed)} missed")
    assert len(alarms) <= COUNT // 1000, "\n".join(alarms)
    assert len(missed) <= len(planted) // 100, "\n".join(missed)
    assert len(planted) >= COUNT // 2


def ruled(seed: int) -> tuple[Program, bool, str]:
    """A program with one wrong rule in it, and whether it alone is named, by its line."""
    draw = random.Random(seed)
    kinds = of_kind(*SMOOTH) - {"scan_empty", "while_stopped", "out_of_bounds"}
    wrapped = ("vjp_clipped" if draw.random() < 0.5 else "jvp_doubled", ("sin", "dot"))
    around = draw.choice(["jit", "scan", "checkpoint", "vmap", "map", "fori", "scan_slices"])
    each = build((*program(seed, kinds, 3).tree, (around, (wrapped,))), seed)
    report = check.rules(each.f, argnums=(0, 1))(*each.args)
    wrong = [rule for rule in report.rules if not rule.ok]
    named = [rule for rule in wrong if rule.kind in ("custom_vjp", "custom_jvp")]
    return (
        each,
        len(wrong) == len(named) == 1 and named[0].line.startswith("programs.py:"),
        str(report),
    )


def test_a_planted_wrong_rule_is_named():
    found = [ruled(SEED + k) for k in range(COUNT // 3)]
    missed = [f"{each.description}\n{report}" for each, named, report in found if not named]
    assert len(missed) <= len(found) // 50, "\n".join(missed)
