"""What one of many devices does with the others, as functions between the equations."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxbackprop.network import Layer

# Legend: own: the share of W or b that a device holds; l: the layer they belong to, in a stack the
# first one of it for all.


class Exchange(NamedTuple):
    """By default nothing: a device that has all of the network and of the examples.

    `whole` makes W or b ready for use, `anew` holds them back until the error is there, so that
    they are made ready a second time; `joined` makes z of W a and b, `part` is the device's own
    share of δ, `error` completes BP2, `summed` completes BP3 and BP4.
    """

    whole: Callable[[Array, int], Array] = lambda own, l: own
    anew: Callable[[Array, Float[Array, "n m"]], Array] = lambda own, delta: own
    joined: Callable[[Array, Array, int], Array] = lambda product, b, l: product + b
    part: Callable[[Array, int], Array] = lambda delta, l: delta
    error: Callable[[Array, int], Array] = lambda delta, l: delta
    summed: Callable[[Layer, int], Layer] = lambda gradient, l: gradient


ALONE = Exchange()
