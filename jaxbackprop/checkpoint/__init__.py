"""The same gradients in less memory: what `backprop(checkpoint=…)` takes, and plans of it.

Stored activations are the memory cost of backpropagation. What is not stored is computed again from
what is: `every(k)` keeps every k-th activation, `within(bytes)` what makes the fewest layer
evaluations in a number of bytes; `plan` says what that is before anything runs.
"""

import functools

from jaxtyping import Array, Float

from jaxbackprop.backprop import Strategy
from jaxbackprop.checkpoint.automatic import check_segment, jax_segments
from jaxbackprop.checkpoint.exchange import ALONE, Exchange
from jaxbackprop.checkpoint.planning import Plan, best_plan, every_plan, plan, shape_of
from jaxbackprop.checkpoint.run import run
from jaxbackprop.network import Network, Params

__all__ = ["Plan", "every", "jax_segments", "plan", "within"]


@functools.cache
def every(k: int) -> Strategy:
    """What `backprop(checkpoint=…)` takes: every k-th activation kept, k − 1 more computed again.

    The segments are counted within each stack and each run of plain layers, whose inputs are kept
    as well. δ is carried from segment to segment. With k = 1 everything is kept.

    Raises ValueError for k below 1.
    """
    check_segment(k)

    def strategy(
        network: Network,
        params: Params,
        x: Float[Array, "p m"],
        y: Float[Array, "n m"],
        exchange: Exchange = ALONE,
    ) -> tuple[Float[Array, ""], Params]:
        found = every_plan(shape_of(network, params, x.shape[-1]), k)
        return run(network, found.schedules, params, x, y, exchange)

    return strategy


@functools.cache
def within(bytes: int) -> Strategy:
    """What `backprop(checkpoint=…)` takes: the fewest layer evaluations in so many bytes.

    The bytes are temporary memory, beside the parameters, x, y and the gradients. `plan` returns
    the plan as a value. Raises ValueError, when it meets a network, where no plan is small enough.
    """

    def strategy(
        network: Network,
        params: Params,
        x: Float[Array, "p m"],
        y: Float[Array, "n m"],
        exchange: Exchange = ALONE,
    ) -> tuple[Float[Array, ""], Params]:
        found = best_plan(shape_of(network, params, x.shape[-1]), bytes)
        return run(network, found.schedules, params, x, y, exchange)

    return strategy
