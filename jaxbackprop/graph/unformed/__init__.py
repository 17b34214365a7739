"""Gradients of one example each, left as the products that the graph makes them of.

Where a parameter meets something of an example in a product, its gradient is the product of what it
met and of the output's cotangent. One pass over a batch has both factors of every example, and what
is asked of the gradients mostly follows from the factors: `views` follows a parameter to the
`sites` where it is met, `survey` runs the function so that both factors come out, `pairs` computes
with them, `leaves` and `quantities` put one parameter's terms together.
"""

from jaxbackprop.graph.unformed.gradients import look_at, unformed
from jaxbackprop.graph.unformed.leaves import Leaf, Term
from jaxbackprop.graph.unformed.quantities import (
    formed_each,
    formed_once,
    squared_norms,
    total,
    total_squares,
)

__all__ = [
    "Leaf",
    "Term",
    "formed_each",
    "formed_once",
    "look_at",
    "squared_norms",
    "total",
    "total_squares",
    "unformed",
]
