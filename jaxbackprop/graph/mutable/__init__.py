"""Mutable arrays (`jax.new_ref`) made into values, before a graph is walked."""

from jaxbackprop.graph.mutable.cells import Cell
from jaxbackprop.graph.mutable.graphs import (
    OF_ONE,
    concerns,
    make_jaxpr,
    operate,
    pure,
    without_mutable,
)

__all__ = ["OF_ONE", "Cell", "concerns", "make_jaxpr", "operate", "pure", "without_mutable"]
