"""A function as a graph of the arrays among its arguments, and what can be seen in it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from jaxbackprop.graph.api import check_pair, places
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
    f: Callable, argnums: int | Sequence[int], args: tuple, kwargs: dict, constants: bool = False
) -> Traced:
    """Every array among the arguments becomes an input; the rest is passed as it is.

    Of the differentiated arguments the floating leaves are differentiated, as of a module with
    functions and counters in it. Raises TypeError where there are none.
    """
    floating = [jax.tree.map(lambda x: x if _is_floating(x) else None, arg) for arg in args]
    places_ = places(argnums, floating)
    for i in places_:
        if not jax.tree.leaves(floating[i]):
            places(i, args)
            raise TypeError(f"argument {i} has no floating array to differentiate by")
    chosen_args = {i % len(args) for i in places_}
    paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    wanted_paths = [_is_chosen(path, chosen_args) and _is_floating(leaf) for path, leaf in paths]
    is_input = [w or _is_array(leaf) for w, (_, leaf) in zip(wanted_paths, paths, strict=True)]
    leaves = [leaf for (_, leaf), own in zip(paths, is_input, strict=True) if own]
    wanted = [w for w, own in zip(wanted_paths, is_input, strict=True) if own]

    def of_arrays(*arrays):
        given = iter(arrays)
        full = [next(given) if own else x for (_, x), own in zip(paths, is_input, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, full)
        return f(*args, **kwargs)

    graph, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*leaves)
    counted = [constants or isinstance(c, Tracer) for c in graph.consts]
    known = frozenset(v for v, own in zip(graph.jaxpr.constvars, counted, strict=True) if own)
    named = of_arguments(f, args)
    names = [_label(named, path) for (path, _), own in zip(paths, is_input, strict=True) if own]
    paths_ = [name if w else "" for w, name in zip(wanted, names, strict=True)]
    labels = tuple(
        Label("parameter", None, name, jnp.shape(leaf), ())
        for w, name, leaf in zip(wanted, names, leaves, strict=True)
        if w
    )

    def gradients(found):
        given = iter(found)
        full = [next(given) if w else None for w in wanted_paths]
        of_args, _ = jax.tree.unflatten(tree, full)
        chosen = tuple(of_args[i] for i in places_)
        return chosen[0] if isinstance(argnums, int) else chosen

    return Traced(
        graph,
        leaves,
        names,
        [i for i, w in enumerate(wanted) if w],
        labels,
        tuple(sites(graph.jaxpr, Flags([True] * len(leaves), wanted, paths_), known)),
        jax.tree.structure(shape),
        gradients,
    )


def visited(traced: Traced, plan: Plan, has_aux: bool) -> Callable:
    """(wanted, ears) ↦ (value, (aux, seen)): differentiated by both, it hears the gradients too."""

    def rewritten(wanted: list, ears: Ears) -> tuple[Any, tuple[Any, dict]]:
        outputs, seen = evaluate(plan, traced.graph, traced.fill(wanted), ears)
        out = jax.tree.unflatten(traced.out, outputs)
        if has_aux:
            check_pair(out)
        value, aux = out if has_aux else (out, None)
        return value, (aux, seen)

    return rewritten


def _is_chosen(path: tuple, chosen: set[int]) -> bool:
    return path[0].idx == 0 and path[1].idx in chosen


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, float | complex) or (_is_array(leaf) and is_real(leaf))


def _label(names: Sequence[str], path: tuple) -> str:
    """params.Dense_0.kernel, of a path in (args, kwargs)."""
    name = names[path[1].idx] if path[0].idx == 0 else path[1].key
    return label(str(name), path[2:])
