"""Statistics of values and gradients inside a jitted step, and where one stops being finite."""

from jaxbackprop.graph.watching.locating import locate
from jaxbackprop.graph.watching.watch import watch

__all__ = ["locate", "watch"]
