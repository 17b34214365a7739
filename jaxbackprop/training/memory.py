"""How many bytes a training run needs, before it starts; and which checkpoint makes it fit."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import optax
from jaxtyping import DTypeLike

from jaxbackprop.checkpoint.descriptions import number_of_bytes
from jaxbackprop.checkpoint.planning import fitting, shape_of
from jaxbackprop.initialisation import init
from jaxbackprop.network import Network, Params
from jaxbackprop.refusals import check_gradient, check_kind, check_optimizer, check_whole

MIB = 2**20


class Need(NamedTuple):
    """Bytes: of the parameters, the optimizer's state, gradients and updates, the data on the
    device, and what the compiled gradient of one batch needs besides."""

    parameters: int
    optimizer: int
    gradients: int
    data: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {n / MIB:,.1f}" for name, n in self._asdict().items())
        return f"{self.total / MIB:,.1f} MiB ({parts})"


def need(
    network: Network,
    optimizer: optax.GradientTransformation,
    gradient: Callable[..., Any],
    batch: int,
    data: int,
    dtype: DTypeLike = "float32",
) -> Need:
    """What `train.run` needs with that gradient and so many bytes of data. Nothing is allocated.

    The gradient is compiled for abstract arrays, which takes as long as compiling always does.
    Raises what the gradient raises, such as ValueError for a checkpoint's budget that is too small.
    """
    check_optimizer(optimizer)
    check_gradient(gradient)
    check_whole("batch", batch)
    check_whole("data", data, least=0)
    params = _abstract(network, dtype)
    x, y = (jax.ShapeDtypeStruct((network.sizes[l], batch), dtype) for l in (0, -1))
    program = jax.jit(gradient, static_argnums=0).lower(network, params, x, y).compile()
    temporary = cast(Any, program.memory_analysis()).temp_size_in_bytes
    held = _bytes(params)
    return Need(held, _bytes(jax.eval_shape(optimizer.init, params)), 2 * held, data, temporary)


def fitting_checkpoint(
    network: Network, batch: int, needed: Need, limit: int | str, dtype: DTypeLike = "float32"
) -> int | None:
    """A budget for `checkpoint.within` with which the run stays below limit, or None."""
    check_kind("needed", needed, Need, "the Need of memory.need")
    room = number_of_bytes(limit) - (needed.total - needed.temporary)
    return (
        room
        if room > 0 and fitting(shape_of(network, _abstract(network, dtype), batch), room)
        else None
    )


def _abstract(network: Network, dtype: DTypeLike) -> Params:
    return jax.eval_shape(lambda: init(network, jax.random.key(0), dtype))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
