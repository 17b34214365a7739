"""Backpropagation written out by hand in JAX, to see, check and own the backward pass.

Two wings, which check each other: the four equations for dense networks (`Network`, `init`,
`forward`, `loss`, `backward`, `backprop`), and the reverse walk over the computation graph of any
JAX function (`grad`, `value_and_grad`, `vjp`, `inspect`).
"""

from jaxbackprop import check, checkpoint, equations, flow, per_example
from jaxbackprop.backprop import Backward, backprop, backward
from jaxbackprop.graph import (
    Inspection,
    UnsupportedPrimitive,
    grad,
    inspect,
    value_and_grad,
    vjp,
)
from jaxbackprop.network import (
    Layer,
    Network,
    Trace,
    forward,
    init,
    loss,
    stack,
    unstack,
)

__all__ = [
    "Backward",
    "Inspection",
    "Layer",
    "Network",
    "Trace",
    "UnsupportedPrimitive",
    "backprop",
    "backward",
    "check",
    "checkpoint",
    "equations",
    "flow",
    "forward",
    "grad",
    "init",
    "inspect",
    "loss",
    "per_example",
    "stack",
    "unstack",
    "value_and_grad",
    "vjp",
]
