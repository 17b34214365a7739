"""What a description means to a dense network: a schedule, and the walk that follows it."""

from jaxtyping import Array, Float

from jaxbackprop.checkpoint.automatic import segmented
from jaxbackprop.checkpoint.descriptions import Description, JaxSegments, Within, described
from jaxbackprop.checkpoint.exchange import ALONE, Exchange
from jaxbackprop.checkpoint.planning import best_plan, every_plan, shape_of
from jaxbackprop.checkpoint.run import run
from jaxbackprop.network import Network, Params
from jaxbackprop.refusals import check_columns, check_params


def checkpointed(
    checkpoint: Description | str,
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    exchange: Exchange = ALONE,
) -> tuple[Float[Array, ""], Params]:
    """The cost and its gradients, in the memory that is described.

    With an exchange, params and examples are those of one device. Raises ValueError where x, y or
    params do not fit the network, and for what is no description or has no plan.
    """
    described_as = described(checkpoint)
    if exchange is ALONE:
        check_params(network, params)
    elif isinstance(described_as, JaxSegments):
        raise ValueError("jax_segments exchanges nothing: take checkpoint.every or within")
    check_columns("x", x, network.sizes[0], params)
    if isinstance(described_as, JaxSegments):
        return segmented(network, described_as.k, params, x, y)
    shape = shape_of(network, params, x.shape[1])
    if isinstance(described_as, Within):
        plan = best_plan(shape, described_as.bytes)
    else:
        plan = every_plan(shape, described_as.k)
    return run(network, plan.schedules, params, x, y, exchange)
