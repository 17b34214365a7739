"""The local gradients of one operation on its values: ∂output/∂operand."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection.steps import Step
from jaxbackprop.graph.rules import RULES
from jaxbackprop.graph.rules.table import entrywise


def local_gradients(step: Step) -> tuple[np.ndarray | None, ...]:
    """∂output/∂operand, for each operand, by pulling a cotangent of ones through the rule.

    None where there is none, or where it is no array of one number an entry: an operation that
    mixes entries and has more than one output.
    """
    single = len(step.outvars) == 1 and np.size(step.outvars[0].array) == 1
    name = step.equation.primitive.name
    if name not in RULES or not (single or entrywise(step.equation)):
        return (None,) * len(step.invars)
    (out,), inputs = ([jnp.asarray(v.array) for v in vs] for vs in (step.outvars, step.invars))
    pulled = RULES[name]((jnp.ones_like(out),), (out,), *inputs, **step.equation.params)
    return tuple(
        _array(contribution) if v.active and contribution is not None else None
        for v, contribution in zip(step.invars, pulled, strict=True)
    )


def _array(contribution: Any) -> np.ndarray:
    return np.asarray(contribution())
