"""What one of many devices does with the others, as functions between the equations."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxbackprop.network import Layer

# Legend: own: the rows of W or b that a device holds; n: the neurons of the layer they belong to.


class Exchange(NamedTuple):
    """By default nothing: a device that has all of the network and of the examples.

    `whole` makes W or b ready for use, `anew` holds them back until the error is there, so that
    they are made ready a second time; `joined` completes z, `part` is the device's own share of δ,
    `error` completes BP2, `summed` completes BP3 and BP4.
    """

    whole: Callable[[Array, int], Array] = lambda own, n: own
    anew: Callable[[Array, Float[Array, "n m"]], Array] = lambda own, delta: own
    joined: Callable[[Array, int], Array] = lambda z, n: z
    part: Callable[[Array, int], Array] = lambda delta, n: delta
    error: Callable[[Array, int], Array] = lambda delta, n: delta
    summed: Callable[[Layer, int], Layer] = lambda gradient, n: gradient


ALONE = Exchange()
