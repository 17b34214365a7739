"""Results rounded otherwise: off by their own eps, up or down, where an operation rounds at all."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.rules.table import STEPS

DRAWS = 4  # ways to round otherwise
EXACT = {
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "rev", "copy", "pad"),
    *("slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "concatenate"),
    *("split", "neg", "abs", "sign", "max", "min", "clamp", "select_n", "sort", "real", "imag"),
    *("reduce_max", "reduce_min", "cummax", "cummin", "reduce_window_max", "stop_gradient"),
} | STEPS


def shake(x: Any, own: Any, salt: int, draw: Any) -> Any:
    """Each number off by eps of its own type, up or down: the sign is a product of one an axis.

    Of the DRAWS no two have equal signs along an axis: where all of one are equal, and a sum that
    cancels is scaled only, the next has others.
    """
    generator, eps = np.random.default_rng(salt), float(jnp.finfo(own.dtype).eps)
    signs = jnp.asarray(generator.permutation([eps, eps, -eps, -eps]))[draw]
    for size in x.shape:
        k = np.arange(size)
        turned = [np.ones(size), (-1.0) ** k, (-1.0) ** (k // 2), (-1.0) ** (k + k // 2)]
        along = generator.choice([-1.0, 1.0], size) * np.stack(turned)
        signs = signs[..., None] * jnp.asarray(along)[draw]
    return x * (1 + signs)
