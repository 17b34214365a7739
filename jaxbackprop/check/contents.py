"""What a graph is made of: its operations, their precision, the graphs inside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxbackprop.graph.dependence import open_jaxpr


def made_of(inner: Any) -> set[str]:
    """The names of all primitives in a graph."""
    names = set()
    for equation in open_jaxpr(inner)[0].eqns:
        names |= {equation.primitive.name}.union(*map(made_of, graphs_in(equation)))
    return names


def coarsest(inner: Any) -> float:
    """The largest eps of the floating point numbers in a graph."""
    worst = 0.0
    for equation in open_jaxpr(inner)[0].eqns:
        for v in equation.outvars:
            kind = getattr(v.aval, "dtype", np.dtype(int))
            if jnp.issubdtype(kind, jnp.floating):
                worst = max(worst, float(jnp.finfo(kind).eps))
        worst = max([worst, *map(coarsest, graphs_in(equation))])
    return worst


def graphs_in(equation: Any) -> list:
    """The graphs among an equation's parameters."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr)
    )
    return [p for p in leaves if isinstance(p, Jaxpr | ClosedJaxpr)]
