"""The same gradients in less memory: what `backprop(checkpoint=…)` takes, and plans of it.

Stored activations are the memory cost of backpropagation. What is not stored is computed again from
what is: `every(k)` keeps every k-th activation, `within(bytes)` what makes the fewest layer
evaluations in a number of bytes; `plan` says what that is before anything runs.
"""

from jaxbackprop.checkpoint.descriptions import Description, every, jax_segments, within
from jaxbackprop.checkpoint.planning import Plan, plan

__all__ = ["Description", "Plan", "every", "jax_segments", "plan", "within"]
