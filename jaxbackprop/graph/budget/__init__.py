"""The exact gradient of any function in a stated number of bytes.

`joint` traces forward and backward pass as one graph; `groups` tells what of it is materialised;
`simulation` finds an order of evaluation, with repetitions, that fits; `emission` evaluates in
that order; `planning` holds the compiled program against what was asked, and `calling` runs it.
"""

from jaxbackprop.graph.budget.calling import compiled
from jaxbackprop.graph.budget.gradient import asked_bytes, one_at_a_time, run

__all__ = ["asked_bytes", "compiled", "one_at_a_time", "run"]
