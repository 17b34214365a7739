"""Local gradients of JAX's primitives, by family; importing this fills the table."""

from jaxbackprop.graph.rules import (
    collective,
    complex_numbers,
    contraction,
    cumulative,
    decompositions,
    elementwise,
    fourier,
    indexing,
    linalg,
    placement,
    reduction,
    selection,
    shape,
    sorting,
    special,
    windows,
)
from jaxbackprop.graph.rules.table import FLAT, RULES, UnsupportedPrimitive, rule

__all__ = [
    "FLAT",
    "RULES",
    "UnsupportedPrimitive",
    "collective",
    "complex_numbers",
    "contraction",
    "cumulative",
    "decompositions",
    "elementwise",
    "fourier",
    "indexing",
    "linalg",
    "placement",
    "reduction",
    "rule",
    "selection",
    "shape",
    "sorting",
    "special",
    "windows",
]
