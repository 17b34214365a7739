"""Is this gradient right? Numerical gradients, and comparisons that say what is wrong."""

from jaxbackprop.check.compare import Comparison, compare
from jaxbackprop.check.gradients import check_gradients
from jaxbackprop.check.numerical import numerical_gradient

__all__ = ["Comparison", "check_gradients", "compare", "numerical_gradient"]
