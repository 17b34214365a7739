"""Per-example gradients of a function, by one forward and one backward pass over its graph."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun

from jaxbackprop.graph.api import value_and_grad
from jaxbackprop.graph.arguments import check_function, check_scalar, only_arrays
from jaxbackprop.graph.mutable import make_jaxpr
from jaxbackprop.graph.unformed.leaves import Leaf, Term
from jaxbackprop.graph.unformed.sites import Site
from jaxbackprop.graph.unformed.survey import Formed, Survey, survey
from jaxbackprop.graph.unformed.views import view
from jaxbackprop.graph.walk import is_real


def unformed(f: Callable, params: Any, batch: Any, m: int) -> list[Leaf]:
    """The gradients of f(params, example) by each leaf of params, of the m examples of a batch."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
    examples = jax.tree.leaves(batch)
    read, dense = look_at(f, params, batch)

    def one(*inputs):
        probes = [_probe(site) for site in read.sites]

        def value_and_kept(probes, own):
            given = list(inputs)
            for i, x in zip(dense, own, strict=True):
                given[i] = x
            (value,), kept = read.run(given, probes)
            return value, kept

        own = [inputs[i] for i in dense]
        (_, kept), found = value_and_grad(value_and_kept, (0, 1), has_aux=True)(probes, own)
        return kept, *found

    one_example = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in examples]
    graph = make_jaxpr(one)(*leaves, *one_example)
    varying = _varying(graph.jaxpr, graph.jaxpr.invars[len(leaves) :])
    axes = [len(site.view.steps) for site in read.sites]
    shared = [v not in varying for v in graph.jaxpr.outvars[2 * len(axes) :]]
    found = jax.vmap(
        jaxpr_as_fun(graph),
        (*(None for _ in leaves), *(0 for _ in examples)),
        [*axes, *axes, *(None if s else 0 for s in shared)],
    )(*leaves, *examples)
    terms = list(map(Term, read.sites, found[: len(axes)], found[len(axes) : 2 * len(axes)]))
    of_leaf = dict(zip(dense, zip(found[2 * len(axes) :], shared, strict=True), strict=True))
    return [
        Leaf(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            m,
            [term for term in terms if term.site.view.leaf == i],
            *of_leaf.get(i, (None, False)),
        )
        for i, x in enumerate(leaves)
    ]


def look_at(f: Callable, params: Any, batch: Any) -> tuple[Survey, list[int]]:
    """What f does with its parameters, and which of them have a dense part."""
    check_function(f)
    leaves, tree = jax.tree.flatten(params)
    examples, example_tree = jax.tree.flatten(batch)

    def of_leaves(*inputs):
        params, example = inputs[: len(leaves)], inputs[len(leaves) :]
        value = only_arrays(f(tree.unflatten(params), example_tree.unflatten(example)))
        check_scalar(value)
        return value

    types = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    types += [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in examples]
    graph = make_jaxpr(of_leaves)(*types)
    views = [
        view(i, x.shape) if is_real(x) and math.prod(x.shape) else None
        for i, x in enumerate(types[: len(leaves)])
    ]
    varying = [False] * len(leaves) + [True] * len(examples)
    read = survey(graph.jaxpr, graph.consts, [*views, *(None for _ in examples)], varying)
    returned = [Formed(v.leaf, (), "f returns it") for v in read.views if v is not None]
    read = read._replace(formed=[*read.formed, *returned])
    used = {use.leaf for use in read.formed}
    return read, [i for i, v in enumerate(views) if v is None or i in used]


def _probe(site: Site) -> jax.Array:
    (output,) = site.equation.outvars
    return jnp.zeros((*site.view.steps, *output.aval.shape), output.aval.dtype)


def _varying(jaxpr: Any, start: Sequence) -> set:
    """The variables that may depend on those to start from."""
    reached = set(start)
    for equation in jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return reached
