"""The statistics of an array that tell a healthy value or gradient from a sick one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection.steps import Unknown


class Statistics(NamedTuple):
    """Of all entries, or of their moduli if complex; NaN and Inf are not left out, but counted."""

    size: int
    norm: float
    mean: float
    min: float
    max: float
    zeros: float
    """The fraction of the entries that are exactly zero."""
    nonfinite: int
    """How many entries are NaN, Inf or -Inf."""


def real(array: Any) -> np.ndarray:
    """In float64; of complex numbers the moduli."""
    array = np.asarray(array)
    return (np.abs(array) if np.iscomplexobj(array) else array).astype(np.float64)


def statistics(array: Any) -> Statistics:
    """In float64, whatever the dtype: the norm of float16 gradients would overflow."""
    entries = real(array).ravel()
    if not entries.size:
        return Statistics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(entries)
        low, high, mean = entries.min(), entries.max(), entries.mean()
    zeros, bad = np.mean(entries == 0), np.sum(~np.isfinite(entries))
    norm, mean, low, high, zeros = map(float, (norm, mean, low, high, zeros))
    return Statistics(entries.size, norm, mean, low, high, zeros, int(bad))


def together(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stacked: no copy where they are the rows of one array already, first or last one first."""
    whole, row = arrays[0].base, arrays[0]
    if isinstance(whole, np.ndarray) and whole.shape == (len(arrays), *row.shape) and row.size:
        begins = [_begin(array) for array in arrays if array.base is whole]
        for rows in (whole, whole[::-1]):
            if begins == [_begin(own) for own in rows]:
                return rows
    return np.stack(arrays)


def _begin(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def numbers(array: Any) -> np.ndarray:
    """In float64; integers and truth values are finite, and so is all else that has no numbers, and
    what is unknown."""
    if isinstance(array, Unknown):
        return np.zeros(())
    inexact = jnp.issubdtype(jnp.result_type(array), jnp.inexact)
    return real(array) if inexact else np.zeros(np.shape(array))


def ill(array: Any) -> np.ndarray | np.bool_:
    """The entries that are not finite."""
    return ~np.isfinite(numbers(array))


def nans(array: Any) -> np.ndarray | np.bool_:
    return np.isnan(numbers(array))
