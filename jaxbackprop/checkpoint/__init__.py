"""The same gradients in less memory: what `checkpoint=…` takes, and plans of it.

Stored activations are the memory cost of backpropagation. What is not stored is computed again from
what is: `every(k)` keeps every k-th activation, `within(bytes)` what makes the fewest layer
evaluations in a number of bytes; `plan` says what that is before anything runs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxbackprop.checkpoint.descriptions import Description, every, jax_segments, within
from jaxbackprop.checkpoint.planning import Plan

if TYPE_CHECKING:
    from jaxbackprop.checkpoint.functions import frontier, kept, least, plan

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


def __getattr__(name: str) -> Any:
    """Plans of functions need the graph wing: it is imported when they are first asked for."""
    if name in {"frontier", "kept", "least", "plan"}:
        return getattr(importlib.import_module("jaxbackprop.checkpoint.functions"), name)
    raise AttributeError(f"module 'jaxbackprop.checkpoint' has no attribute {name!r}")
