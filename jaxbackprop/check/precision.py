"""Numbers of more digits."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def wide(x: Any) -> Any:
    """x in float64 or complex128, where it is of an inexact type at all."""
    kind = getattr(x, "dtype", None)
    if kind is None or not jnp.issubdtype(kind, jnp.inexact):
        return x
    return jnp.asarray(x).astype(wide_type(kind))


def wide_type(kind: Any) -> Any:
    return jnp.complex128 if jnp.issubdtype(kind, jnp.complexfloating) else jnp.float64


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.int32), jnp.inexact)
