"""Is this gradient right, and which line is wrong?

`check_gradients` holds a gradient against differences of its function, `rules` every custom rule
inside a function against its own, `walk` jax's gradient, ours and differences against each other.
"""

from jaxbackprop.check.compare import Comparison, compare
from jaxbackprop.check.gradients import check_gradients
from jaxbackprop.check.numerical import numerical_gradient
from jaxbackprop.check.rules import rules
from jaxbackprop.check.walking import walk

__all__ = ["Comparison", "check_gradients", "compare", "numerical_gradient", "rules", "walk"]
