"""What per-example gradients of a function will take, parameter by parameter."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbackprop.forward import loss
from jaxbackprop.graph.lines import innermost, stack
from jaxbackprop.graph.unformed import look_at
from jaxbackprop.graph.unformed.quantities import by_inner_products, factor_types
from jaxbackprop.graph.unformed.sites import Site
from jaxbackprop.graph.unformed.survey import Survey
from jaxbackprop.network import Network

# Rows of a product: from about FULL on, more of them make it no faster, and an example that has
# MANY by itself needs few others beside it.
FULL, MANY = 256, 64


class LeafPlan(NamedTuple):
    """One parameter: its gradients of each example are left as products, or formed, and why.

    `bytes` are held of one example; `norms` says what the norms are computed from.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    why: str
    norms: str
    bytes: int


class Plan(NamedTuple):
    """What is held of each example of a batch besides what one gradient of the batch needs.

    `bytes` of factors and formed gradients, of one example; `gradient_bytes` would be held of each
    if all were formed; `microbatch` is how many examples at a time are advised, None for all.
    """

    leaves: tuple[LeafPlan, ...]
    bytes: int
    gradient_bytes: int
    microbatch: int | None

    def __str__(self) -> str:
        width = max((len(leaf.name) for leaf in self.leaves), default=0)
        lines = [
            f"{leaf.name:<{width}}  {leaf.form:<7}  {_size(leaf.bytes):>10}  "
            f"{leaf.norms}; {leaf.why}"
            for leaf in self.leaves
        ]
        advice = (
            "all examples at once" if self.microbatch is None else (f"microbatch={self.microbatch}")
        )
        whole = f"{_size(self.bytes)} an example, a gradient has {_size(self.gradient_bytes)}"
        return "\n".join([*lines, f"{whole}: {advice}"])


def plan(f: Network | Callable[[Any, Any], Any]) -> Callable[[Any, Any], Plan]:
    """A function of (params, example) that says what per-example gradients of f will take.

    The example is one, without an axis of examples; of a network it is (x, y), a column each.
    Nothing is computed, so shapes and dtypes are enough (`jax.ShapeDtypeStruct`). Printed, it has a
    line for each parameter.

    Microbatches are advised where one example alone has many rows in its products, as a long
    sequence has: more examples at once than fill a product would take more bytes and be no faster.
    And where formed gradients are most of what is held: then one at a time holds the least. Not
    with convolutions, which XLA computes slowly inside of a loop.
    """

    if not callable(f) and not isinstance(f, Network):
        raise ValueError(f"f is {f!r}, expected a Network or a function of (params, example)")

    def of(params: Any, example: Any) -> Plan:
        if isinstance(f, Network) and (not isinstance(example, tuple | list) or len(example) != 2):
            raise ValueError("the example of a network is (x, y), and this is something else")
        cost = _of_columns(f) if isinstance(f, Network) else f
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)), jax.dtypes.result_type(x)), example
        )
        read, dense = look_at(cost, params, batch)
        named = jax.tree_util.tree_leaves_with_path(params)
        leaves = tuple(
            _leaf(read, i, jax.tree_util.keystr(path) or "params", x, i in dense)
            for i, (path, x) in enumerate(named)
        )
        held = sum(leaf.bytes for leaf in leaves)
        gradient = sum(_bytes(x) for _, x in named)
        return Plan(leaves, held, gradient, _microbatch(read, leaves, gradient))

    return of


def _microbatch(read: Survey, leaves: tuple[LeafPlan, ...], gradient: int) -> int | None:
    if any(site.equation.primitive.name == "conv_general_dilated" for site in read.sites):
        return None
    if 2 * sum(leaf.bytes for leaf in leaves if leaf.form == "formed") > gradient:
        return 1
    rows = max(map(_rows, read.sites), default=1)
    return max(1, FULL // rows) if rows >= MANY else None


def _of_columns(network: Network) -> Callable:
    return lambda params, example: loss(network, params, *(v[:, None] for v in example))


def _leaf(read: Survey, number: int, name: str, x: Any, dense: bool) -> LeafPlan:
    sites = [site for site in read.sites if site.view.leaf == number]
    uses = [use for use in read.formed if use.leaf == number]
    factors = sum(_bytes(t) for site in sites for t in factor_types(site))
    held = factors + (_bytes(x) if dense else 0)
    if uses:
        line = innermost(stack(uses[0].equations))
        why = uses[0].why + (f" ({line})" if line else "")
    elif sites:
        names = dict.fromkeys(site.equation.primitive.name for site in sites)
        why = f"{len(sites)} × {', '.join(names)} with the example"
    else:
        why = "not used"
    by_inner = bool(sites) and by_inner_products(sites, dense, False)
    norms = "inner products" if by_inner else "a few formed at a time" if sites else "as it is"
    return LeafPlan(name, jnp.shape(x), "formed" if dense else "product", why, norms, held)


def _rows(site: Site) -> int:
    """How many rows one example has in the product, at one step of the loops around it."""
    if site.equation.primitive.name != "dot_general":
        return 1
    summed = site.equation.params["dimension_numbers"][0][site.operand]
    contracted = math.prod(site.view.shape[d] for d in summed)
    output = math.prod(site.equation.outvars[0].aval.shape)
    return output * contracted // math.prod(site.view.shape)


def _bytes(x: Any) -> int:
    return math.prod(jnp.shape(x)) * jnp.dtype(jnp.result_type(x)).itemsize


def _size(count: int) -> str:
    """In a unit that keeps the number short."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
