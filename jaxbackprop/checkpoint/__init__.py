"""The same gradients in less memory: what `checkpoint=…` takes, and plans of it.

Stored activations are the memory cost of backpropagation. What is not stored is computed again from
what is: `every(k)` keeps every k-th activation, `within(bytes)` what makes the fewest layer
evaluations in a number of bytes; `plan` says what that is before anything runs.
"""

from jaxbackprop.checkpoint.descriptions import Description, every, jax_segments, within
from jaxbackprop.checkpoint.functions import frontier, kept, least, plan
from jaxbackprop.checkpoint.planning import Plan

__all__ = [
    "Description",
    "Plan",
    "every",
    "frontier",
    "jax_segments",
    "kept",
    "least",
    "plan",
    "within",
]
