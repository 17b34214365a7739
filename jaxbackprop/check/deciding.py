"""What a graph decides by its numbers: comparisons, integers, steps. Whose decisions are taken."""

import enum
from typing import Any

import jax.numpy as jnp

from jaxbackprop.check.contents import graphs_in
from jaxbackprop.check.precision import is_inexact, wide
from jaxbackprop.graph.dependence import open_jaxpr
from jaxbackprop.graph.rules.table import COMPARISONS, STEPS

DECISIONS = (COMPARISONS | STEPS) - {"stop_gradient"}


class Decisions(enum.Enum):
    """Which of f's decisions are held, and how."""

    NONE = enum.auto()
    TURNED = enum.auto()  # as f's own precision takes them at the arguments, where float64 does not
    ALL = enum.auto()  # as f's own precision takes them at the arguments
    CALM = enum.auto()  # as they are where nothing is shaken


def decides(inner: Any) -> bool:
    """Is there a decision in a graph?"""
    return any(
        is_decision(equation) or any(map(decides, graphs_in(equation)))
        for equation in open_jaxpr(inner)[0].eqns
    )


def is_decision(equation: Any) -> bool:
    """Does it make a step of a number: a truth value, an integer, a rounded number? Its own bits
    are none of these."""
    name = equation.primitive.name
    reads = any(is_inexact(v.aval) for v in equation.invars) and name != "bitcast_convert_type"
    return name in DECISIONS or (reads and not any(is_inexact(v.aval) for v in equation.outvars))


def as_decided(highs: list, lows: list, stills: list, held: Decisions) -> tuple[list, list]:
    """What is decided, where the numbers move and where they are still."""
    if held is Decisions.NONE:
        return highs, stills
    if held is Decisions.CALM:
        return stills, stills
    own = [wide(low) for low in lows]
    if held is Decisions.ALL:
        return own, stills
    three = zip(stills, own, highs, strict=True)
    return [jnp.where(still == low, high, low) for still, low, high in three], own
