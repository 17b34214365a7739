"""Backpropagation for any JAX function: a reverse walk over its computation graph.

It shares nothing with the network wing and calls none of jax.grad, jax.vjp, jax.jvp: the local
gradients are a table (`rules`), the walk is `walk`, and the operations that contain a graph of
their own are in `structure`, `loop`, `custom`, `brought` and `monoids`. `inspect` shows what
passes through the walk.
"""

from jaxbackprop.graph import brought as _brought
from jaxbackprop.graph import custom as _custom
from jaxbackprop.graph import devices as _devices
from jaxbackprop.graph import loop as _loop
from jaxbackprop.graph import monoids as _monoids
from jaxbackprop.graph import structure as _structure
from jaxbackprop.graph.api import grad, value_and_grad, vjp
from jaxbackprop.graph.inspection import Inspection, inspect
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.watching import locate, watch

__all__ = [
    "Inspection",
    "UnsupportedPrimitive",
    "grad",
    "inspect",
    "locate",
    "value_and_grad",
    "vjp",
    "watch",
]

# Imported for what they enter into the walk's table.
del _brought, _custom, _devices, _loop, _monoids, _structure
