"""Bounds on the norm of a gradient: one for all of it, or a tree of them for its parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Bool, Float


def checked(max_norm: Any, params: Any) -> Any:
    """max_norm, if it is a bound or a prefix of params with a positive bound at each leaf.

    Else ValueError. Of a bound that is traced the value is not known yet, and not checked.
    """
    for path, bound in tree_leaves_with_path(max_norm):
        name = f"max_norm{keystr(path)}"
        number = isinstance(bound, (int, float, np.generic, np.ndarray, jax.Array))
        real = number and jnp.issubdtype(jnp.result_type(bound), jnp.number)
        if not real or jnp.iscomplexobj(bound):
            raise ValueError(f"{name} is {bound!r}, expected a positive number")
        if jnp.shape(bound) != ():
            raise ValueError(
                f"{name} has the shape {jnp.shape(bound)}: a bound is one number; for bounds by "
                "leaf give a tree like params"
            )
        if not isinstance(bound, Tracer) and not float(bound) > 0:
            raise ValueError(f"{name} is {bound}, expected a positive number")
    try:
        jax.tree.map(lambda bound, part: None, max_norm, params)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"max_norm has the structure {jax.tree.structure(max_norm)}, which is no prefix of "
            f"that of params, {jax.tree.structure(params)}"
        ) from error
    return max_norm


def coefficients(bounds: Any, squares: Any) -> tuple[list[Float[Array, " m"]], Bool[Array, " m"]]:
    """(min(1, bound / norm) of each example, one array a leaf of squares; which examples are bad).

    A bad example, whose whole norm is not finite, has the coefficient 0 everywhere.
    """
    bad = ~jnp.isfinite(sum(jax.tree.leaves(squares)))

    def of_part(bound, part):
        norm = jnp.sqrt(sum(jax.tree.leaves(part), jnp.zeros(bad.shape, jnp.float32)))
        share = jnp.where(bound > 0, jnp.minimum(1, bound / norm), jnp.nan)
        share = jnp.where(bad, 0, share).astype(norm.dtype)
        return jax.tree.map(lambda _: share, part)

    return jax.tree.leaves(jax.tree.map(of_part, bounds, squares)), bad
