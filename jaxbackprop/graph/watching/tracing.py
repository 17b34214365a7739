"""A function as a graph of the arrays among its arguments, and what can be seen in it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from jaxbackprop.graph.arguments import (
    check_function,
    check_pair,
    check_scalar,
    is_one,
    only_arrays,
    places,
)
from jaxbackprop.graph.mutable import make_jaxpr
from jaxbackprop.graph.names import label, of_arguments
from jaxbackprop.graph.walk import is_real
from jaxbackprop.graph.watching.labels import Label
from jaxbackprop.graph.watching.rewriting import Ears, Plan, evaluate
from jaxbackprop.graph.watching.sites import Flags, Site, sites


class Traced(NamedTuple):
    """A function's graph, and the way from its arguments to the graph's inputs and back.

    leaves: all arrays among the arguments, and their names; those at `chosen` are differentiated.
    parameters: their labels. out: the structure of what the function returns.
    """

    graph: Any
    leaves: list
    names: list[str]
    chosen: list[int]
    parameters: tuple[Label, ...]
    sites: tuple[Site, ...]
    out: Any
    gradients: Callable[[Sequence], Any]

    @property
    def wanted(self) -> list:
        return [jnp.asarray(self.leaves[i]) for i in self.chosen]

    def fill(self, wanted: Sequence) -> list:
        """All inputs of the graph, with these in the place of the differentiated ones."""
        full = list(self.leaves)
        for i, leaf in zip(self.chosen, wanted, strict=True):
            full[i] = leaf
        return full

    def run(self, wanted: Sequence) -> Any:
        """The function itself."""
        outputs = jaxpr_as_fun(self.graph)(*self.fill(wanted))
        return jax.tree.leaves(jax.tree.unflatten(self.out, outputs))[0]


def trace(
    f: Callable,
    argnums: int | Sequence[int],
    args: tuple,
    kwargs: dict,
    has_aux: bool,
    constants: bool = False,
) -> Traced:
    """Every array among the arguments becomes an input; the rest is passed as it is.

    Of the differentiated arguments the floating leaves are differentiated, as of a module with
    functions and counters in it. Raises TypeError where there are none.
    """
    check_function(f)
    chosen = _differentiated(argnums, args)
    paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    wanted = [_is_of(path, chosen) and _is_floating(leaf) for path, leaf in paths]
    inputs = [w or _is_array(leaf) for w, (_, leaf) in zip(wanted, paths, strict=True)]
    named = of_arguments(f, args)
    leaves = [(_label(named, path), x) for (path, x), i in zip(paths, inputs, strict=True) if i]
    flags = [w for w, i in zip(wanted, inputs, strict=True) if i]

    def rebuilt(values, places, rest):
        """(args, kwargs) with these values in these places, and the rest in the others."""
        given = iter(values)
        full = [next(given) if at else x for at, x in zip(places, rest, strict=True)]
        return jax.tree.unflatten(tree, full)

    def of_arrays(*arrays):
        args, kwargs = rebuilt(arrays, inputs, [leaf for _, leaf in paths])
        return only_arrays(f(*args, **kwargs))

    def gradients(found):
        of_args, _ = rebuilt(found, wanted, [None] * len(paths))
        each = tuple(of_args[i] for i in chosen)
        return each[0] if is_one(argnums) else each

    graph, shape = make_jaxpr(of_arrays, return_shape=True)(*(leaf for _, leaf in leaves))
    if has_aux:
        check_pair(shape)
    check_scalar(shape[0] if has_aux else shape)
    return Traced(
        graph,
        [leaf for _, leaf in leaves],
        [name for name, _ in leaves],
        [i for i, w in enumerate(flags) if w],
        _parameters(leaves, flags),
        _sites(graph, leaves, flags, constants),
        jax.tree.structure(shape),
        gradients,
    )


def _differentiated(argnums: int | Sequence[int], args: tuple) -> list[int]:
    """Which arguments are; each has a floating leaf."""
    floating = [jax.tree.map(lambda x: x if _is_floating(x) else None, arg) for arg in args]
    chosen = [i % len(args) for i in places(argnums, [0.0 for _ in args])]  # the numbers alone
    for i in chosen:
        if not jax.tree.leaves(floating[i]):
            places(i, args)
            raise TypeError(f"argument {i} has no floating array to differentiate by")
    return chosen


def _parameters(leaves: Sequence[tuple[str, Any]], flags: Sequence[bool]) -> tuple[Label, ...]:
    return tuple(
        Label("parameter", None, name, jnp.shape(leaf), ())
        for (name, leaf), wanted in zip(leaves, flags, strict=True)
        if wanted
    )


def _sites(
    graph: Any, leaves: Sequence[tuple[str, Any]], flags: Sequence[bool], constants: bool
) -> tuple[Site, ...]:
    """What can be seen in the graph, of its inputs, of tracers around it, and, if asked, of the
    arrays that f closes over."""
    counted = [constants or isinstance(c, Tracer) for c in graph.consts]
    known = frozenset(v for v, own in zip(graph.jaxpr.constvars, counted, strict=True) if own)
    paths = [name if wanted else "" for (name, _), wanted in zip(leaves, flags, strict=True)]
    return tuple(sites(graph.jaxpr, Flags([True] * len(leaves), list(flags), paths), known))


def visited(traced: Traced, plan: Plan, has_aux: bool) -> Callable:
    """(wanted, ears) ↦ (value, (aux, seen)): differentiated by both, it hears the gradients too."""

    def rewritten(wanted: list, ears: Ears) -> tuple[Any, tuple[Any, dict]]:
        outputs, seen = evaluate(plan, traced.graph, traced.fill(wanted), ears)
        out = jax.tree.unflatten(traced.out, outputs)
        value, aux = out if has_aux else (out, None)
        return value, (aux, seen)

    return rewritten


def _is_of(path: tuple, chosen: Sequence[int]) -> bool:
    return path[0].idx == 0 and path[1].idx in chosen


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, float | complex) or (_is_array(leaf) and is_real(leaf))


def _label(names: Sequence[str], path: tuple) -> str:
    """params.Dense_0.kernel, of a path in (args, kwargs)."""
    name = names[path[1].idx] if path[0].idx == 0 else path[1].key
    return label(str(name), path[2:])
