"""What passes through the walk, kept and shown: values, gradients, lines, the origin of a NaN."""

from jaxbackprop.graph.inspection.inspection import Inspection, inspect

__all__ = ["Inspection", "inspect"]
