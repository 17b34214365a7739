"""Statistics of values and gradients inside a jitted step, of any function."""

from jaxbackprop.graph.watching.watch import watch

__all__ = ["watch"]
