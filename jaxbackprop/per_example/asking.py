"""A question about the gradients of each example, put to a function or to a network."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxbackprop.graph import unformed
from jaxbackprop.graph.arguments import places
from jaxbackprop.network import Network
from jaxbackprop.per_example.batches import count, in_turns
from jaxbackprop.per_example.columns import outer_products
from jaxbackprop.per_example.fitting import Room, sized
from jaxbackprop.refusals import check_params

Cost = Network | Callable[[Any, Any], Any]


def answered(
    f: Cost, of: Callable, microbatch: int | None, checkpoint: Room
) -> Callable[[Any, Any], Any]:
    """of(params, batch, microbatch) as a function of (params, batch), within the room for it."""
    return sized(of, functools.partial(number, f), microbatch, checkpoint)


def ask(
    f: Cost, params: Any, batch: Any, microbatch: int | None, question: Callable, *beside: Array
) -> tuple[Any, Any]:
    """question(the gradients by each leaf, *beside) -> (sums, rows), of all examples together.

    What stands beside the batch has a first axis of examples as well.
    """
    if isinstance(f, Network):
        check_params(f, params)
    _must_be_real(params)
    m = number(f, batch)

    def of_part(part, size):
        batch, beside = part
        if isinstance(f, Network):
            leaves = outer_products(f, params, *(jnp.swapaxes(x, -1, -2) for x in batch))
        else:
            leaves = unformed.unformed(f, params, batch, size)
        return question(leaves, *beside)

    return in_turns(of_part, (_examples(f, batch), beside), m, microbatch)


def number(f: Cost, batch: Any) -> int:
    """m, the number of examples."""
    return count(batch, axis=1 if isinstance(f, Network) else 0)


def means(sums: list[Array], params: Any, m: int) -> Any:
    """The sums over m, as a tree like params."""
    return like(params, [g / m for g in sums])


def like(params: Any, leaves: list[Array]) -> Any:
    """A tree like params, each leaf in the dtype of its parameter."""
    own, tree = jax.tree.flatten(params)
    return tree.unflatten([x.astype(jnp.result_type(p)) for x, p in zip(leaves, own, strict=True)])


def _must_be_real(params: Any) -> None:
    """TypeError unless all parameters are real arrays."""
    places((0,), (params,))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}: the norm of a "
                "gradient is of real parameters, so give its real and imaginary parts"
            )


def _examples(f: Cost, batch: Any) -> Any:
    """The batch with the examples along the first axis, as arrays."""
    if not isinstance(f, Network):
        return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError("the batch of a network is (x, y), and this is something else")
    return [jnp.swapaxes(jnp.asarray(x), -1, -2) for x in batch]
